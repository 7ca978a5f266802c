#include "inference_service/model_store.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "inference_service/gla_decoder.h"
#include "kernels/base/status_macros.h"

namespace gla::inference {
namespace {

// "models/{id}", id [a-z][a-z0-9-]{0,62}.
absl::Status ValidateName(const std::string& name) {
  constexpr std::string_view kPrefix = "models/";
  const std::string id =
      name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : "";
  const bool valid =
      !id.empty() && id.size() <= 63 && absl::ascii_islower(id[0]) &&
      std::all_of(id.begin(), id.end(), [](unsigned char c) {
        return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
      });
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "name: want models/{id} with id [a-z][a-z0-9-]{0,62}, got \"", name,
      "\""));
}

// A model with such weights could only answer with errors.
absl::Status CheckFinite(const Parameters& parameters) {
  for (const ParameterSpec& spec : parameters.table().specs()) {
    const float* data = parameters.data(spec);
    const float* bad = std::find_if(data, data + spec.size,
                                    [](float x) { return !std::isfinite(x); });
    if (bad != data + spec.size) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: element %d is %f", spec.name, bad - data, *bad));
    }
  }
  return absl::OkStatus();
}

// The directory's tokenizer, nullptr if it has none.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerIfAny(
    const std::string& directory, int32_t vocab_size) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      LoadTokenizer(directory);
  if (absl::IsNotFound(tokenizer.status())) {
    return std::unique_ptr<Tokenizer>();
  }
  RETURN_IF_ERROR(tokenizer.status());
  if ((*tokenizer)->vocab_size() > vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: the tokenizer has %d tokens, the model %d",
                        directory, (*tokenizer)->vocab_size(), vocab_size));
  }
  return tokenizer;
}

// The tokenizer's end of text, or the config's when there is no tokenizer.
int32_t EosId(const Tokenizer* tokenizer, const GlaConfig& config) {
  return tokenizer != nullptr ? tokenizer->eos_id() : config.eos_token_id;
}

}  // namespace

ServedModel::ServedModel(std::string name, int32_t version,
                         std::string checkpoint, LoadedModel loaded,
                         std::unique_ptr<Tokenizer> tokenizer,
                         const ServingOptions& options)
    : name_(std::move(name)),
      version_(version),
      checkpoint_(std::move(checkpoint)),
      loaded_(std::move(loaded)),
      tokenizer_(std::move(tokenizer)),
      model_(loaded_.config, loaded_.parameters.get()),
      engine_(std::make_unique<Engine>(
          std::make_unique<GlaDecoder>(&model_, options.state_slots,
                                       options.threads),
          tokenizer_.get(), EosId(tokenizer_.get(), loaded_.config),
          options.engine)) {}

ModelStore::ModelStore(ServingOptions options)
    : options_(std::move(options)), thread_([this] { FreeRetired(); }) {}

ModelStore::~ModelStore() {
  std::map<std::string, std::shared_ptr<ServedModel>> models;
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
    models.swap(models_);
  }
  models.clear();
  changed_.notify_all();
  thread_.join();
}

absl::StatusOr<std::shared_ptr<ServedModel>> ModelStore::Load(
    const std::string& name, const std::string& checkpoint) {
  RETURN_IF_ERROR(ValidateName(name));
  std::lock_guard load_lock(load_mutex_);
  int32_t version = 1;
  {
    std::lock_guard lock(mutex_);
    if (!accepting_) {
      return absl::UnavailableError("the server is shutting down");
    }
    const auto old = models_.find(name);
    if (old != models_.end()) version = old->second->version() + 1;
  }
  ASSIGN_OR_RETURN(std::shared_ptr<ServedModel> model,
                   Build(name, version, checkpoint));
  std::shared_ptr<ServedModel> replaced;  // let go after the lock is given up
  std::lock_guard lock(mutex_);
  if (!accepting_) {
    return absl::UnavailableError("the server is shutting down");
  }
  replaced = std::exchange(models_[name], model);
  std::erase_if(versions_, [](const auto& v) { return v.expired(); });
  versions_.push_back(model);
  return model;
}

absl::StatusOr<std::shared_ptr<ServedModel>> ModelStore::Build(
    const std::string& name, int32_t version, const std::string& checkpoint) {
  ASSIGN_OR_RETURN(LoadedModel loaded, LoadModelDirectory(checkpoint));
  RETURN_IF_ERROR(CheckFinite(*loaded.parameters));
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer,
                   LoadTokenizerIfAny(checkpoint, loaded.config.vocab_size));
  {
    std::lock_guard lock(mutex_);
    ++num_alive_;
  }
  return std::shared_ptr<ServedModel>(
      new ServedModel(name, version, checkpoint, std::move(loaded),
                      std::move(tokenizer), options_),
      [this](ServedModel* model) { Retire(model); });
}

absl::StatusOr<std::shared_ptr<ServedModel>> ModelStore::Find(
    const std::string& name) const {
  std::lock_guard lock(mutex_);
  if (name.empty() && models_.size() == 1) return models_.begin()->second;
  const auto it = models_.find(name);
  if (it != models_.end()) return it->second;
  if (models_.empty()) return absl::NotFoundError("model: none is loaded");
  const std::string loaded =
      absl::StrJoin(models_, ", ", [](std::string* out, const auto& entry) {
        absl::StrAppend(out, entry.first);
      });
  if (name.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model: empty, and more than one is loaded: ", loaded));
  }
  return absl::NotFoundError(
      absl::StrCat("model: \"", name, "\" is not loaded; loaded: ", loaded));
}

std::vector<std::shared_ptr<ServedModel>> ModelStore::List() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<ServedModel>> models;
  for (const auto& [name, model] : models_) models.push_back(model);
  return models;
}

std::vector<std::shared_ptr<ServedModel>> ModelStore::Alive() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<ServedModel>> models;
  for (const auto& version : versions_) {
    if (auto model = version.lock()) models.push_back(std::move(model));
  }
  return models;
}

void ModelStore::StopAccepting() {
  {
    std::lock_guard lock(mutex_);
    accepting_ = false;
  }
  for (const auto& model : Alive()) model->engine().StopAccepting();
}

bool ModelStore::AwaitIdle(absl::Time deadline) const {
  const auto idle = [](const EngineStats& stats) { return stats.idle(); };
  for (const auto& model : Alive()) {
    if (!model->engine().AwaitStats(idle, deadline)) return false;
  }
  return true;
}

void ModelStore::Abort(const absl::Status& status) {
  for (const auto& model : Alive()) model->engine().Abort(status);
}

bool ModelStore::AwaitAlive(int n, absl::Time deadline) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, absl::ToChronoTime(deadline),
                             [&] { return num_alive_ <= n; });
}

void ModelStore::Retire(ServedModel* model) {
  std::lock_guard lock(mutex_);
  retired_.emplace_back(model);
  changed_.notify_all();
}

void ModelStore::FreeRetired() {
  std::unique_lock lock(mutex_);
  while (!closing_ || num_alive_ > 0) {
    changed_.wait(lock, [this] {
      return !retired_.empty() || (closing_ && num_alive_ == 0);
    });
    std::vector<std::unique_ptr<ServedModel>> retired = std::move(retired_);
    retired_.clear();
    const int freed = static_cast<int>(retired.size());
    lock.unlock();
    retired.clear();
    lock.lock();
    num_alive_ -= freed;
    changed_.notify_all();
  }
}

}  // namespace gla::inference
