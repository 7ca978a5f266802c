// A reader that takes all output at once and keeps it.
#ifndef GLA_INFERENCE_SERVICE_TESTING_RECORDING_READER_H_
#define GLA_INFERENCE_SERVICE_TESTING_RECORDING_READER_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "glog/logging.h"
#include "inference_service/engine.h"

namespace gla::inference {

// One stream of an engine, which must outlive it. Thread-safe.
class RecordingReader : public std::enable_shared_from_this<RecordingReader> {
 public:
  static absl::StatusOr<std::shared_ptr<RecordingReader>> Start(
      Engine* engine, GenerationRequest request) {
    auto reader = std::make_shared<RecordingReader>(engine);
    std::lock_guard lock(reader->mutex_);  // OnOutput() needs the id
    absl::StatusOr<Engine::StreamId> id =
        engine->Submit(std::move(request), [reader] { reader->OnOutput(); });
    if (!id.ok()) return id.status();
    reader->id_ = *id;
    return reader;
  }
  explicit RecordingReader(Engine* engine) : engine_(engine) {}

  void Cancel() { engine_->Cancel(id_); }

  // Waits for the end of the stream.
  Finish AwaitFinish() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return all_.finish.has_value(); });
    return *all_.finish;
  }

  std::vector<int32_t> tokens() const {
    std::lock_guard lock(mutex_);
    return all_.tokens;
  }
  std::string text() const {
    std::lock_guard lock(mutex_);
    return all_.text;
  }

 private:
  void OnOutput() {
    std::lock_guard lock(mutex_);
    Output output = engine_->Take(id_);
    if (output.empty()) return;  // cancelled
    CHECK_EQ(output.offset, static_cast<int64_t>(all_.tokens.size()));
    all_.tokens.insert(all_.tokens.end(), output.tokens.begin(),
                       output.tokens.end());
    all_.text += output.text;
    all_.finish = output.finish;
    changed_.notify_all();
  }

  Engine* const engine_;
  Engine::StreamId id_ = 0;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Output all_;  // guarded by mutex_
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_TESTING_RECORDING_READER_H_
