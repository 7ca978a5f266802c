// Runs sequences on a model: one thread, a fixed number of state slots.
#ifndef GLA_INFERENCE_SERVICE_ENGINE_H_
#define GLA_INFERENCE_SERVICE_ENGINE_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "inference_service/decoder.h"
#include "inference_service/scheduler.h"
#include "inference_service/sequence.h"
#include "model/tokenizer/tokenizer.h"

namespace gla::inference {

struct EngineStats {
  int slots = 0;
  int slots_free = 0;
  int queued = 0;  // accepted and without a slot
  int parked = 0;  // have a slot, but their reader is behind

  bool idle() const { return slots_free == slots && queued == 0; }
};

// Takes requests from any thread and serves them on a thread of its own, which
// alone touches the decoder. A step of the engine is what PlanStep() says. What
// holds:
//   * A slot belongs to at most one sequence, is reset when it is handed out,
//     and all are free when nobody is served (CHECKed).
//   * A request is accepted only if a slot is free or the queue has room, and
//     then nothing but its reader, its deadline or the server's end stops it.
//   * A sequence that was cancelled, or whose deadline passed, takes part in no
//     step that begins afterwards; its slot is free from there on.
//   * Nobody waits for a reader: one that lets `stream_tokens` tokens pile up
//     has its sequence parked, which keeps its slot and goes on when the reader
//     has taken them.
//   * The tokens of a request depend on the request and the model alone.
// Thread-safe.
class Engine {
 public:
  struct Options {
    int max_queued = 128;  // requests that wait for a slot
    int64_t prefill_chunk_tokens = 128;
    int stream_tokens = 256;  // that a reader may be behind
    std::function<absl::Time()> clock = absl::Now;
  };

  // `tokenizer` may be null: then there is no text. `eos_id` -1: none.
  Engine(std::unique_ptr<Decoder> decoder, const Tokenizer* tokenizer,
         int32_t eos_id, Options options);
  // Ends the thread. Streams that are still open are not told.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  using StreamId = uint64_t;

  // Accepts a request. `on_output` is called on the engine's thread whenever
  // there is something new to Take(); it must be quick and may call Take() and
  // Cancel(). It may be called once more after Cancel() has returned.
  //   RESOURCE_EXHAUSTED  the queue is full
  //   UNAVAILABLE         after StopAccepting()
  absl::StatusOr<StreamId> Submit(GenerationRequest request,
                                  std::function<void()> on_output);

  // What has come since the last call; empty when nothing has or the stream is
  // unknown. The stream is gone once its finish has been taken.
  Output Take(StreamId id);

  // The reader is gone: frees what the stream holds. Unknown ids are ignored.
  void Cancel(StreamId id);

  EngineStats stats() const;
  // Waits until `want` holds; false: `deadline` came first.
  bool AwaitStats(absl::FunctionRef<bool(const EngineStats&)> want,
                  absl::Time deadline) const;

  int64_t bytes_per_slot() const { return decoder_->bytes_per_slot(); }

  // Accepts no more requests; those accepted go on.
  void StopAccepting();
  // StopAccepting(), and ends all streams with `status` (not OK).
  void Abort(absl::Status status);

 private:
  // A reader's end of a sequence.
  struct Stream {
    std::function<void()> on_output;
    Output output;  // not taken yet
  };
  // What a step brings a stream.
  struct Event {
    uint64_t stream = 0;
    std::optional<int32_t> token;
    std::string text;
    std::optional<Finish> finish;
  };

  void Run();
  // Waits for something to do and takes it in; false: the engine ends.
  bool Receive();
  void WaitUntilWoken(std::unique_lock<std::mutex>* lock);
  void NoteReaders();  // holds mutex_
  void UpdateStats();  // holds mutex_
  void EndOverdue();   // past their deadline, or all of them after Abort()
  std::vector<SequenceView> Views() const;
  void Admit(const std::vector<int>& indices);
  void Release(Sequence* sequence);
  void RunDecode(const std::vector<int>& indices);
  void RunPrefill(const PrefillChunk& chunk);
  void Emit(Sequence* sequence, int32_t token);
  void End(Sequence* sequence, absl::Status status, FinishReason reason,
           Event* event);
  void Publish();
  std::string TokenText(int32_t token) const;

  const std::unique_ptr<Decoder> decoder_;
  const Tokenizer* const tokenizer_;
  const int32_t eos_id_;
  const Options options_;

  // Of the engine's thread.
  std::vector<std::unique_ptr<Sequence>> sequences_;  // in order of arrival
  std::vector<int> free_slots_;
  std::vector<Event> events_;  // of this step
  absl::Status abort_status_;  // not OK: everything ends
  bool idle_ = true;           // nothing to do until woken

  // Guarded by mutex_. (std::mutex, not Abseil's, whose Debian build hides
  // locking from the thread sanitizer.)
  mutable std::mutex mutex_;
  std::condition_variable woken_;
  mutable std::condition_variable stats_changed_;
  bool wake_ = false;
  bool stop_ = false;
  bool accepting_ = true;
  absl::Status abort_request_;
  StreamId last_id_ = 0;
  int live_ = 0;  // accepted and not done
  EngineStats stats_;
  std::vector<std::unique_ptr<Sequence>> inbox_;
  absl::flat_hash_map<StreamId, Stream> streams_;

  std::thread thread_;  // last: it uses the rest
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_ENGINE_H_
