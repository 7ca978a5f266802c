// A decoder without a model, whose steps a test can hold.
#ifndef GLA_INFERENCE_SERVICE_TESTING_FAKE_DECODER_H_
#define GLA_INFERENCE_SERVICE_TESTING_FAKE_DECODER_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "inference_service/decoder.h"

namespace gla::inference {

// The next token is a hash of all tokens fed to the slot since its reset, of
// the seed and of the position, so any mix-up of slots, order or history shows.
// Slots that were never reset hold rubbish.
class FakeDecoder : public Decoder {
 public:
  static constexpr int32_t kVocabSize = 256;

  explicit FakeDecoder(int num_slots) : slots_(num_slots, 0xbad) {}

  // The first n tokens that it draws after a prompt.
  static std::vector<int32_t> Expected(const std::vector<int32_t>& prompt,
                                       const SamplingOptions& sampling, int n);

  // From now on calls to Prefill and Step wait at their door.
  void Hold();
  // Waits until a call waits at the door; what it is:
  // "prefill SLOT BEGIN-END" (places in the prompt) or "step SLOT SLOT ...".
  std::string AwaitCall();
  // Lets the call at the door (there must be one) through.
  void LetOneThrough();
  void LetGo();  // ends Hold()

  // Draws kNoToken for this output position, as a broken model would.
  void BreakAtPosition(int64_t position) { broken_position_ = position; }

  int num_slots() const override { return static_cast<int>(slots_.size()); }
  int64_t bytes_per_slot() const override { return sizeof(uint64_t); }
  void ResetSlot(int slot) override;
  int32_t Prefill(int slot, absl::Span<const int32_t> tokens,
                  const SamplingOptions* sampling) override;
  void Step(absl::Span<const StepInput> inputs,
            absl::Span<int32_t> next) override;

 private:
  void Door(const std::string& call);
  int32_t Draw(int slot, const SamplingOptions& sampling, int64_t position);

  std::vector<uint64_t> slots_;  // hash of what was fed
  std::vector<int64_t> fed_ = std::vector<int64_t>(slots_.size(), 0);
  int64_t broken_position_ = -1;

  // Guarded by mutex_.
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  std::string at_door_;  // empty: nobody
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_TESTING_FAKE_DECODER_H_
