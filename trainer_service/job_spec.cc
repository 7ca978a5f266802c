#include "trainer_service/job_spec.h"

#include <unistd.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/message.h"
#include "google/protobuf/unknown_field_set.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/thread_pool.h"
#include "model/config.h"
#include "trainer_service/data/data_loader.h"

namespace gla::trainer {
namespace {

constexpr int64_t kMaxSteps = int64_t{1} << 40;
constexpr int64_t kMaxSequenceLength = int64_t{1} << 20;
constexpr int64_t kMaxBatchSequences = int64_t{1} << 20;

template <typename T>
absl::Status Refuse(const char* field, const std::string& want, T got) {
  return absl::InvalidArgumentError(
      absl::StrCat("spec.", field, ": want ", want, ", got ", got));
}

absl::Status CheckInt(const char* field, int64_t value, int64_t low,
                      int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Refuse(field, absl::StrCat(low, " to ", high), value);
}

// Also refuses NaN and infinities.
absl::Status CheckNumber(const char* field, double value, double low,
                         double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return Refuse(field, absl::StrCat(low, " to ", high), value);
}

// A field that a newer client knows and we do not would be ignored silently.
absl::Status CheckNoUnknownFields(const google::protobuf::Message& message,
                                  const std::string& path) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const auto& unknown = reflection.GetUnknownFields(message);
  if (!unknown.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": unknown field number ", unknown.field(0).number()));
  }
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const auto* field : fields) {
    if (field->message_type() == nullptr || field->is_repeated()) continue;
    RETURN_IF_ERROR(
        CheckNoUnknownFields(reflection.GetMessage(message, field),
                             absl::StrCat(path, ".", field->name())));
  }
  return absl::OkStatus();
}

absl::Status ResolveModel(const Dataset& dataset, v1::JobSpec* spec) {
  gla::v1::ModelConfig* model = spec->mutable_model();
  if (!model->has_vocab_size()) model->set_vocab_size(dataset.vocab_size());
  if (model->vocab_size() != dataset.vocab_size()) {
    return Refuse(
        "model.vocab_size",
        absl::StrCat(dataset.vocab_size(), " (the tokenizer's of dataset ",
                     dataset.directory(), ")"),
        model->vocab_size());
  }
  const absl::StatusOr<GlaConfig> config = GlaConfig::FromProto(*model);
  if (!config.ok()) {
    return absl::Status(config.status().code(),
                        absl::StrCat("spec.model.", config.status().message()));
  }
  *model = config->ToProto();
  return absl::OkStatus();
}

absl::Status ResolveData(const Dataset& dataset, v1::JobSpec* spec) {
  v1::DataSpec* data = spec->mutable_data();
  if (data->sequence_length() == 0) data->set_sequence_length(512);
  if (data->batch_sequences() == 0) data->set_batch_sequences(8);
  RETURN_IF_ERROR(CheckInt("data.sequence_length", data->sequence_length(), 1,
                           kMaxSequenceLength));
  RETURN_IF_ERROR(CheckInt("data.batch_sequences", data->batch_sequences(), 1,
                           kMaxBatchSequences));
  if (data->micro_batch_sequences() == 0) {
    data->set_micro_batch_sequences(data->batch_sequences());
  }
  const int32_t micro = data->micro_batch_sequences();
  if (micro < 1 || data->batch_sequences() % micro != 0) {
    return Refuse(
        "data.micro_batch_sequences",
        absl::StrCat("a divisor of batch_sequences ", data->batch_sequences()),
        micro);
  }
  const int64_t minimum = MinimumStreamTokens(data->sequence_length());
  if (dataset.train().size() < minimum) {
    return Refuse("data.sequence_length",
                  absl::StrCat("less than the ", dataset.train().size(),
                               " training tokens of ", dataset.directory()),
                  data->sequence_length());
  }
  return absl::OkStatus();
}

absl::Status ResolveOptimizer(int64_t total_steps, v1::OptimizerSpec* spec) {
  constexpr double kMax = std::numeric_limits<float>::max();
  if (spec->learning_rate() == 0) spec->set_learning_rate(1e-3);
  if (!spec->has_min_learning_rate()) {
    spec->set_min_learning_rate(0.1 * spec->learning_rate());
  }
  if (!spec->has_warmup_steps()) spec->set_warmup_steps(total_steps / 20);
  if (!spec->has_weight_decay()) spec->set_weight_decay(0.1);
  if (!spec->has_beta1()) spec->set_beta1(0.9);
  if (!spec->has_beta2()) spec->set_beta2(0.95);
  if (!spec->has_eps()) spec->set_eps(1e-8);
  if (!spec->has_max_grad_norm()) spec->set_max_grad_norm(1.0);

  RETURN_IF_ERROR(CheckNumber("optimizer.learning_rate", spec->learning_rate(),
                              std::numeric_limits<float>::min(), 100));
  RETURN_IF_ERROR(CheckNumber("optimizer.min_learning_rate",
                              spec->min_learning_rate(), 0,
                              spec->learning_rate()));
  RETURN_IF_ERROR(
      CheckInt("optimizer.warmup_steps", spec->warmup_steps(), 0, total_steps));
  RETURN_IF_ERROR(
      CheckNumber("optimizer.weight_decay", spec->weight_decay(), 0, 100));
  constexpr double kBelowOne = 0.9999999;
  RETURN_IF_ERROR(CheckNumber("optimizer.beta1", spec->beta1(), 0, kBelowOne));
  RETURN_IF_ERROR(CheckNumber("optimizer.beta2", spec->beta2(), 0, kBelowOne));
  RETURN_IF_ERROR(CheckNumber("optimizer.eps", spec->eps(),
                              std::numeric_limits<float>::min(), 1));
  return CheckNumber("optimizer.max_grad_norm", spec->max_grad_norm(), 0, kMax);
}

absl::Status ResolveSchedules(v1::JobSpec* spec) {
  v1::EvaluationSpec* evaluation = spec->mutable_evaluation();
  if (evaluation->sequence_length() == 0) {
    evaluation->set_sequence_length(spec->data().sequence_length());
  }
  RETURN_IF_ERROR(CheckInt("evaluation.every_steps", evaluation->every_steps(),
                           0, kMaxSteps));
  RETURN_IF_ERROR(CheckInt("evaluation.sequence_length",
                           evaluation->sequence_length(), 1,
                           kMaxSequenceLength));
  v1::CheckpointSpec* checkpoints = spec->mutable_checkpoints();
  if (checkpoints->keep_latest() == 0) checkpoints->set_keep_latest(3);
  RETURN_IF_ERROR(CheckInt("checkpoints.every_steps",
                           checkpoints->every_steps(), 0, kMaxSteps));
  RETURN_IF_ERROR(CheckInt("checkpoints.keep_latest",
                           checkpoints->keep_latest(), 2, 1 << 20));
  if (!spec->has_max_restarts_without_progress()) {
    spec->set_max_restarts_without_progress(3);
  }
  return CheckInt("max_restarts_without_progress",
                  spec->max_restarts_without_progress(), 0, 1000);
}

// A lower bound of what training takes, so that a slip of the finger is refused
// here and not by the system's out-of-memory killer.
absl::Status CheckMemory(const v1::JobSpec& spec, const Machine& machine) {
  ASSIGN_OR_RETURN(const GlaConfig config, GlaConfig::FromProto(spec.model()));
  // Blocks hold at least their q, k, v, o and MLP matrices.
  const double hidden = config.hidden_size;
  const double layers = config.num_hidden_layers;
  const double weights =
      hidden * config.vocab_size +
      layers * hidden *
          (2.0 * config.key_dim() / config.kv_groups() +
           2.0 * config.value_dim() + 3.0 * config.mlp_dim());
  const double tokens = static_cast<double>(spec.data().sequence_length()) *
                        spec.data().micro_batch_sequences();
  const double bytes =
      sizeof(float) * (4 * weights + 4 * layers * tokens * hidden);
  if (bytes <= static_cast<double>(machine.memory_bytes)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "spec.model, spec.data.micro_batch_sequences: want what fits in ",
      machine.memory_bytes / 1000000, " MB of memory, got at least ",
      std::round(bytes / 1e6), " MB of weights, gradients, moments and ",
      "activations"));
}

}  // namespace

Machine ThisMachine() {
  return {.threads = HardwareThreads(),
          .memory_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) *
                          sysconf(_SC_PAGESIZE)};
}

absl::StatusOr<std::unique_ptr<Dataset>> OpenDataset(const v1::JobSpec& spec) {
  const std::string& directory = spec.data().dataset();
  if (!absl::StartsWith(directory, "/")) {
    return Refuse("data.dataset", "an absolute path",
                  absl::StrCat("\"", directory, "\""));
  }
  absl::StatusOr<std::unique_ptr<Dataset>> dataset = Dataset::Open(directory);
  if (dataset.ok()) return dataset;
  return absl::Status(
      dataset.status().code(),
      absl::StrCat("spec.data.dataset: ", dataset.status().message()));
}

absl::StatusOr<v1::JobSpec> ResolveJobSpec(const v1::JobSpec& spec,
                                           const Dataset& dataset,
                                           const Machine& machine) {
  RETURN_IF_ERROR(CheckNoUnknownFields(spec, "spec"));
  v1::JobSpec resolved = spec;
  RETURN_IF_ERROR(CheckInt("total_steps", spec.total_steps(), 1, kMaxSteps));
  RETURN_IF_ERROR(ResolveModel(dataset, &resolved));
  RETURN_IF_ERROR(ResolveData(dataset, &resolved));
  RETURN_IF_ERROR(
      ResolveOptimizer(spec.total_steps(), resolved.mutable_optimizer()));
  RETURN_IF_ERROR(ResolveSchedules(&resolved));
  if (resolved.threads() == 0) resolved.set_threads(machine.threads);
  RETURN_IF_ERROR(CheckInt("threads", resolved.threads(), 1, machine.threads));
  RETURN_IF_ERROR(CheckMemory(resolved, machine));
  return resolved;
}

}  // namespace gla::trainer
