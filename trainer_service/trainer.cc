#include "trainer_service/trainer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "kernels/optimizer/adamw.h"
#include "kernels/optimizer/grad_norm.h"
#include "model/checkpoint/checkpoint.h"
#include "trainer_service/data/data_loader.h"
#include "trainer_service/failure.h"
#include "trainer_service/lr_schedule.h"

namespace gla::trainer {
namespace {

using v1::Failure;

int64_t MicroBatchTokens(const v1::DataSpec& data) {
  return static_cast<int64_t>(data.micro_batch_sequences()) *
         data.sequence_length();
}

int64_t BatchTokens(const v1::DataSpec& data) {
  return static_cast<int64_t>(data.batch_sequences()) * data.sequence_length();
}

absl::StatusOr<std::unique_ptr<Dataset>> OpenVerified(
    const std::string& directory) {
  ASSIGN_OR_RETURN(std::unique_ptr<Dataset> dataset, Dataset::Open(directory));
  RETURN_IF_ERROR(dataset->VerifyDigests());
  return dataset;
}

// Of a write.
absl::Status WithDiskReason(const absl::Status& status) {
  if (status.ok()) return status;
  return WithReason(absl::IsResourceExhausted(status) ? Failure::DISK_FULL
                                                      : Failure::INTERNAL,
                    status);
}

std::string CheckpointRoot(const TrainerOptions& options) {
  return options.directory + "/checkpoints";
}

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(
    const TrainerOptions& options) {
  absl::StatusOr<std::unique_ptr<Dataset>> dataset =
      OpenVerified(options.spec.data().dataset());
  if (!dataset.ok()) return WithReason(Failure::DATA, dataset.status());
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      LoadTokenizer((*dataset)->directory());
  if (!tokenizer.ok()) return WithReason(Failure::DATA, tokenizer.status());
  const absl::StatusOr<GlaConfig> config =
      GlaConfig::FromProto(options.spec.model());
  if (!config.ok()) return WithReason(Failure::USER_CONFIG, config.status());
  if (config->vocab_size != (*dataset)->vocab_size()) {
    return WithReason(
        Failure::DATA,
        absl::FailedPreconditionError(absl::StrCat(
            (*dataset)->directory(), ": want a vocabulary of ",
            config->vocab_size, ", got ", (*dataset)->vocab_size())));
  }
  std::unique_ptr<Trainer> trainer(new Trainer(
      options, *config, *std::move(dataset), *std::move(tokenizer)));
  RETURN_IF_ERROR(trainer->Resume());
  return trainer;
}

Trainer::Trainer(const TrainerOptions& options, const GlaConfig& config,
                 std::unique_ptr<Dataset> dataset,
                 std::unique_ptr<Tokenizer> tokenizer)
    : options_(options),
      spec_(options_.spec),
      observer_(options.observer != nullptr ? options.observer : &silent_),
      config_(config),
      dataset_(std::move(dataset)),
      tokenizer_(std::move(tokenizer)),
      threads_(options.spec.threads()),
      ctx_{.device = Device::kCpu,
           .threads = &threads_,
           .scratch = &arena_,
           .stream = nullptr},
      table_(config_),
      weights_(&table_),
      gradients_(&table_),
      adam_m_(&table_),
      adam_v_(&table_),
      model_(config_, &weights_),
      tokens_(MicroBatchTokens(spec_.data())),
      labels_(tokens_.size()),
      loss_(tokens_.size()) {
  if (!HasValidation()) return;
  const int32_t length = spec_.evaluation().sequence_length();
  evaluator_.emplace(
      &model_, &dataset_->validation(), length,
      std::max<int64_t>(1, MicroBatchTokens(spec_.data()) / length));
}

absl::Status Trainer::Resume() {
  ASSIGN_OR_RETURN(
      const std::optional<ResumePoint> point,
      ResumeFromNewest(CheckpointRoot(options_), options_.must_resume,
                       observer_, &weights_, &adam_m_, &adam_v_));
  progress_.set_total_steps(spec_.total_steps());
  if (!point.has_value()) {
    InitializeParameters(spec_.seed(), config_, &weights_);
    state_.set_seed(spec_.seed());
    state_.set_dataset_sha256(dataset_->manifest_sha256());
  } else {
    state_ = point->state;
    if (state_.dataset_sha256() != dataset_->manifest_sha256()) {
      return WithReason(Failure::DATA,
                        absl::FailedPreconditionError(absl::StrCat(
                            "dataset ", dataset_->directory(),
                            " changed since checkpoint ", point->directory)));
    }
    parent_ = point->directory;
    saved_step_ = step();
    progress_.set_step(step());
    progress_.set_tokens(state_.tokens());
    if (point->evaluation_loss.has_value() && HasValidation()) {
      RecordEvaluation(*point->evaluation_loss);
    }
    LOG(INFO) << options_.job << " goes on from " << parent_;
  }
  ASSIGN_OR_RETURN(
      metrics_, MetricsLog::Open(options_.directory + "/metrics.jsonl", step(),
                                 options_.attempt));
  return absl::OkStatus();
}

absl::Status Trainer::Step() {
  const absl::Time start = absl::Now();
  const double learning_rate =
      LearningRate(spec_.optimizer(), spec_.total_steps(), step());
  const double loss = AccumulateGradients();
  const double grad_norm =
      std::sqrt(SumOfSquares(ctx_, std::as_const(gradients_).flat()));
  if (!std::isfinite(loss) || !std::isfinite(grad_norm)) {
    return WithReason(Failure::NONFINITE,
                      absl::OutOfRangeError(
                          absl::StrCat("step ", step() + 1, ": loss is ", loss,
                                       ", gradient norm is ", grad_norm)));
  }
  UpdateWeights(grad_norm, learning_rate);
  RecordStep(loss, learning_rate, grad_norm,
             absl::ToDoubleSeconds(absl::Now() - start));
  return WithDiskReason(metrics_->WriteStep(progress_));
}

// Gradients of the mean loss over the batch, a micro-batch at a time; returns
// that loss.
double Trainer::AccumulateGradients() {
  const v1::DataSpec& data = spec_.data();
  const DataOrder order = {.seed = spec_.seed(),
                           .sequence_length = data.sequence_length(),
                           .batch_sequences = data.batch_sequences()};
  const std::array<int64_t, 2> shape = {data.micro_batch_sequences(),
                                        data.sequence_length()};
  const TensorView<int32_t, 2> tokens(tokens_.data(), shape);
  const TensorView<int32_t, 2> labels(labels_.data(), shape);
  GlaModel::LossArgs args;
  args.tokens = tokens;
  args.labels = labels;
  args.grad_scale = 1.0f / static_cast<float>(BatchTokens(data));
  args.gradients = &gradients_;
  args.loss = TensorView<float, 2>(loss_.data(), shape);

  gradients_.SetZero();
  double total = 0;
  for (int32_t row = 0; row < data.batch_sequences();
       row += data.micro_batch_sequences()) {
    LoadTrainingRows(dataset_->train(), order, step(), row, tokens, labels);
    model_.Loss(ctx_, args);
    for (float loss : loss_) total += loss;
  }
  return total / static_cast<double>(BatchTokens(data));
}

void Trainer::UpdateWeights(double grad_norm, double learning_rate) {
  const v1::OptimizerSpec& optimizer = spec_.optimizer();
  AdamWArgs args;
  args.learning_rate = static_cast<float>(learning_rate);
  args.beta1 = static_cast<float>(optimizer.beta1());
  args.beta2 = static_cast<float>(optimizer.beta2());
  args.eps = static_cast<float>(optimizer.eps());
  args.grad_scale = ClipFactor(grad_norm, optimizer.max_grad_norm());
  args.step = step() + 1;
  for (const ParameterSpec& spec : table_.specs()) {
    const std::array<int64_t, 1> shape = {spec.size};
    args.grad = {gradients_.data(spec), shape};
    args.param = {weights_.data(spec), shape};
    args.m = {adam_m_.data(spec), shape};
    args.v = {adam_v_.data(spec), shape};
    args.weight_decay =
        spec.decays ? static_cast<float>(optimizer.weight_decay()) : 0;
    AdamW(ctx_, args);
  }
}

void Trainer::RecordStep(double loss, double learning_rate, double grad_norm,
                         double seconds) {
  const double tokens = static_cast<double>(BatchTokens(spec_.data()));
  clock_.Add(seconds);
  state_.set_step(step() + 1);
  state_.set_tokens(state_.tokens() + BatchTokens(spec_.data()));
  progress_.set_step(step());
  progress_.set_tokens(state_.tokens());
  progress_.set_loss(loss);
  progress_.set_learning_rate(learning_rate);
  progress_.set_grad_norm(grad_norm);
  progress_.set_tokens_per_second(tokens / clock_.mean_seconds());
  const double remaining =
      clock_.mean_seconds() * static_cast<double>(spec_.total_steps() - step());
  progress_.mutable_remaining()->set_seconds(
      static_cast<int64_t>(std::ceil(remaining)));
}

absl::StatusOr<bool> Trainer::Evaluate() {
  if (!evaluator_.has_value()) return true;
  const auto result = evaluator_->Run(ctx_, [this] { return StopRequested(); });
  if (!result.has_value()) return false;
  if (!std::isfinite(result->loss)) {
    return WithReason(
        Failure::NONFINITE,
        absl::OutOfRangeError(absl::StrCat(
            "step ", step(), ": validation loss is ", result->loss)));
  }
  RecordEvaluation(result->loss);
  RETURN_IF_ERROR(WithDiskReason(metrics_->WriteEvaluation(progress_)));
  LOG(INFO) << absl::StreamFormat(
      "step %d: validation loss %.4f, %.4f bits per byte", step(), result->loss,
      result->bits_per_byte);
  return true;
}

void Trainer::RecordEvaluation(double loss) {
  evaluated_step_ = step();
  progress_.set_evaluation_loss(loss);
  progress_.set_evaluation_bits_per_byte(
      BitsPerByte(dataset_->validation(), config_.vocab_size, loss));
}

absl::Status Trainer::SaveCheckpoint() {
  CheckpointContents contents;
  contents.config = &config_;
  contents.weights = &weights_;
  contents.adam_m = &adam_m_;
  contents.adam_v = &adam_v_;
  contents.tokenizer = tokenizer_.get();
  contents.train_state = state_;
  contents.job = options_.job;
  contents.attempt = options_.attempt;
  contents.parent = parent_;
  if (EvaluatedNow()) contents.evaluation_loss = progress_.evaluation_loss();
  const std::string root = CheckpointRoot(options_);
  const absl::StatusOr<std::string> directory =
      CommitCheckpoint(root, contents);
  RETURN_IF_ERROR(WithDiskReason(directory.status()));
  saved_step_ = step();
  LOG(INFO) << "step " << step() << ": checkpoint " << *directory;
  RETURN_IF_ERROR(ReportCheckpoint(*directory));
  const absl::Status collected = CollectCheckpoints(
      root, spec_.checkpoints().keep_latest(), options_.attempt);
  LOG_IF(WARNING, !collected.ok()) << collected;  // disk space, not safety
  return absl::OkStatus();
}

absl::Status Trainer::ReportCheckpoint(const std::string& directory) {
  ASSIGN_OR_RETURN(const gla::v1::Manifest manifest, ReadManifest(directory));
  CommittedCheckpoint committed;
  committed.directory = directory;
  committed.step = manifest.step();
  for (const auto& file : manifest.files()) {
    committed.size_bytes += file.size_bytes();
  }
  if (manifest.has_evaluation_loss()) {
    committed.evaluation_loss = manifest.evaluation_loss();
  }
  observer_->OnCheckpoint(committed);
  return absl::OkStatus();
}

absl::StatusOr<bool> Trainer::Run() {
  constexpr absl::Duration kLogInterval = absl::Seconds(10);
  absl::Time next_log = absl::Now();
  // Whoever committed it may have died before anyone was told.
  if (!parent_.empty()) RETURN_IF_ERROR(ReportCheckpoint(parent_));
  while (step() < spec_.total_steps()) {
    if (StopRequested()) return Stop();
    RETURN_IF_ERROR(Step());
    observer_->OnProgress(progress_);
    if (absl::Now() >= next_log || step() == spec_.total_steps()) {
      LOG(INFO) << absl::StreamFormat(
          "step %d/%d: loss %.4f, learning rate %.3g, gradient norm %.3g, "
          "%.0f tokens/s",
          step(), spec_.total_steps(), progress_.loss(),
          progress_.learning_rate(), progress_.grad_norm(),
          progress_.tokens_per_second());
      next_log = absl::Now() + kLogInterval;
    }
    ASSIGN_OR_RETURN(const bool go_on, EvaluateAndSaveIfDue());
    if (!go_on) return Stop();
  }
  // Resumed after the last step: the evaluation may be missing.
  ASSIGN_OR_RETURN(const bool done, EvaluateAndSaveIfDue());
  return done ? true : Stop();
}

// Evaluates first, so that the checkpoint has the loss. False: stop.
absl::StatusOr<bool> Trainer::EvaluateAndSaveIfDue() {
  const auto due = [this](int64_t every) {
    return step() == spec_.total_steps() || (every > 0 && step() % every == 0);
  };
  if (due(spec_.evaluation().every_steps()) && !EvaluatedNow()) {
    ASSIGN_OR_RETURN(const bool evaluated, Evaluate());
    if (!evaluated) return false;
    observer_->OnProgress(progress_);
  }
  if (due(spec_.checkpoints().every_steps()) && saved_step_ != step()) {
    RETURN_IF_ERROR(SaveCheckpoint());
  }
  return true;
}

bool Trainer::StopRequested() const {
  return observer_->stop_request() != StopRequest::kNone;
}

absl::StatusOr<bool> Trainer::Stop() {
  if (observer_->stop_request() == StopRequest::kSaveAndStop &&
      saved_step_ != step()) {
    RETURN_IF_ERROR(SaveCheckpoint());
  }
  LOG(INFO) << "stopped at step " << step();
  return false;
}

}  // namespace gla::trainer
