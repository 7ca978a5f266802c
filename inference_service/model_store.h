// The models that are served, by name.
#ifndef GLA_INFERENCE_SERVICE_MODEL_STORE_H_
#define GLA_INFERENCE_SERVICE_MODEL_STORE_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "inference_service/engine.h"
#include "model/checkpoint/model_directory.h"
#include "model/gla_model.h"
#include "model/tokenizer/tokenizer.h"

namespace gla::inference {

struct ServingOptions {
  int state_slots = 16;  // per model
  int threads = 1;       // per model, for its steps
  Engine::Options engine = {};
};

// One checkpoint in memory with the engine that runs it. Thread-safe.
class ServedModel {
 public:
  ServedModel(std::string name, int32_t version, std::string checkpoint,
              LoadedModel loaded, std::unique_ptr<Tokenizer> tokenizer,
              const ServingOptions& options);

  const std::string& name() const { return name_; }  // "models/{id}"
  int32_t version() const { return version_; }  // loads of the name, from 1
  const std::string& checkpoint() const { return checkpoint_; }
  const GlaConfig& config() const { return loaded_.config; }
  int64_t num_parameters() const { return loaded_.table->num_parameters(); }
  // nullptr when the checkpoint has none: then it speaks token ids only.
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }
  Engine& engine() { return *engine_; }

 private:
  const std::string name_;
  const int32_t version_;
  const std::string checkpoint_;
  const LoadedModel loaded_;
  const std::unique_ptr<Tokenizer> tokenizer_;
  const GlaModel model_;
  std::unique_ptr<Engine> engine_;  // last: it uses the rest
};

// A name stands for the newest checkpoint that was loaded under it. Whoever has
// a model keeps it alive: an older version finishes what it has accepted and is
// freed when the last holder lets go, on a thread of the store's, because the
// last holder may be the model's own engine. Thread-safe.
class ModelStore {
 public:
  explicit ModelStore(ServingOptions options);
  // Waits until all models have been let go.
  ~ModelStore();
  ModelStore(const ModelStore&) = delete;
  ModelStore& operator=(const ModelStore&) = delete;

  // Loads `checkpoint` and puts it in the place of what `name` stood for. Takes
  // as long as reading the files does; loads wait for each other. On error
  // nothing changes:
  //   INVALID_ARGUMENT  `name` is not "models/{id}"; or as LoadModelDirectory;
  //                     or the tokenizer has more tokens than the model; or a
  //                     weight is not finite
  //   NOT_FOUND, DATA_LOSS  as LoadModelDirectory
  //   UNAVAILABLE       after StopAccepting()
  absl::StatusOr<std::shared_ptr<ServedModel>> Load(
      const std::string& name, const std::string& checkpoint);

  // The newest version. `name` may be empty when one model is loaded.
  //   NOT_FOUND         not loaded; lists what is
  //   INVALID_ARGUMENT  empty, and there is a choice
  absl::StatusOr<std::shared_ptr<ServedModel>> Find(
      const std::string& name) const;

  // By name.
  std::vector<std::shared_ptr<ServedModel>> List() const;

  // From here on nothing is loaded and no engine accepts requests.
  void StopAccepting();
  // Waits until the engines are idle; false: `deadline` came first.
  bool AwaitIdle(absl::Time deadline) const;
  // Ends the streams of all engines with `status`.
  void Abort(const absl::Status& status);

  // Waits until no more than `n` versions are in memory, those that finish
  // included; false: `deadline` came first.
  bool AwaitAlive(int n, absl::Time deadline) const;

 private:
  absl::StatusOr<std::shared_ptr<ServedModel>> Build(
      const std::string& name, int32_t version, const std::string& checkpoint);
  // Every version that is alive.
  std::vector<std::shared_ptr<ServedModel>> Alive() const;
  void Retire(ServedModel* model);
  void FreeRetired();  // the thread's loop

  const ServingOptions options_;
  std::mutex load_mutex_;  // held during a load, taken before mutex_

  // Guarded by mutex_.
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool accepting_ = true;
  bool closing_ = false;
  int num_alive_ = 0;
  std::map<std::string, std::shared_ptr<ServedModel>> models_;
  std::vector<std::weak_ptr<ServedModel>> versions_;
  std::vector<std::unique_ptr<ServedModel>> retired_;

  std::thread thread_;  // last: it uses the rest
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_MODEL_STORE_H_
