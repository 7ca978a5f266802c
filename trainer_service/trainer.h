// Training of one model: from a resolved spec to a final checkpoint.
#ifndef GLA_TRAINER_SERVICE_TRAINER_H_
#define GLA_TRAINER_SERVICE_TRAINER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gla/trainer/v1/trainer.pb.h"
#include "kernels/base/arena.h"
#include "kernels/base/execution_context.h"
#include "kernels/base/thread_pool.h"
#include "model/config.h"
#include "model/gla_model.h"
#include "model/parameters.h"
#include "model/tokenizer/tokenizer.h"
#include "trainer_service/data/dataset.h"
#include "trainer_service/evaluator.h"
#include "trainer_service/metrics_log.h"
#include "trainer_service/resume.h"
#include "trainer_service/trainer_observer.h"

namespace gla::trainer {

struct TrainerOptions {
  v1::JobSpec spec;                     // resolved (job_spec.h)
  std::string job;                      // "jobs/{job_id}"; goes into manifests
  std::string directory;                // gets checkpoints/ and metrics.jsonl
  int32_t attempt = 1;                  // goes into manifests
  bool must_resume = false;             // starting over is an error
  TrainerObserver* observer = nullptr;  // may be null; outlives the trainer
};

// Owns the model, the optimizer's state and the data of a run on the CPU. One
// thread at a time. Everything is a function of the spec and the dataset: the
// same losses and weights, bit for bit, however often the run was interrupted
// and resumed, on the same build and machine. After the first step nothing is
// allocated. Errors carry a Failure.Reason (failure.h).
class Trainer {
 public:
  // Opens the data and resumes from the newest valid checkpoint of the job's
  // directory, or starts from initial weights when there is none.
  //   DATA                 the dataset is missing, damaged or not the one that
  //                        the checkpoint was trained on
  //   USER_CONFIG          the spec's model cannot be built
  //   CHECKPOINT_CORRUPT   there were checkpoints, none is valid
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(
      const TrainerOptions& options);

  int64_t step() const { return state_.step(); }  // optimizer steps done
  const v1::Progress& progress() const { return progress_; }
  const Parameters& weights() const { return weights_; }
  int64_t scratch_bytes() const { return arena_.reserved_bytes(); }

  // One optimizer step on the next batch. NONFINITE: the loss or the gradient
  // norm is NaN or infinite; weights and moments are those of the step before.
  // DISK_FULL: metrics.jsonl cannot be written.
  absl::Status Step();

  // Evaluates the current weights on the validation split into progress().
  // False: a stop was asked for meanwhile, progress() is as before. NONFINITE:
  // the loss is NaN or infinite. DISK_FULL: metrics.jsonl cannot be written.
  // Does nothing when the split is empty.
  absl::StatusOr<bool> Evaluate();

  // Commits the current step. DISK_FULL, INTERNAL.
  absl::Status SaveCheckpoint();

  // Steps, evaluates and saves as the spec says until the last step is
  // committed (true) or the observer asks to stop (false). The observer hears
  // first of the checkpoint resumed from, then of each new one.
  absl::StatusOr<bool> Run();

 private:
  Trainer(const TrainerOptions& options, const GlaConfig& config,
          std::unique_ptr<Dataset> dataset,
          std::unique_ptr<Tokenizer> tokenizer);

  absl::Status Resume();
  double AccumulateGradients();
  void UpdateWeights(double grad_norm, double learning_rate);
  void RecordStep(double loss, double learning_rate, double grad_norm,
                  double seconds);
  void RecordEvaluation(double loss);
  bool HasValidation() const { return dataset_->validation().size() >= 2; }
  bool EvaluatedNow() const { return evaluated_step_ == step(); }
  bool StopRequested() const;
  absl::Status ReportCheckpoint(const std::string& directory);
  absl::StatusOr<bool> EvaluateAndSaveIfDue();
  absl::StatusOr<bool> Stop();

  const TrainerOptions options_;
  const v1::JobSpec& spec_;  // of options_
  TrainerObserver silent_;
  TrainerObserver* const observer_;
  const GlaConfig config_;
  const std::unique_ptr<Dataset> dataset_;
  const std::unique_ptr<Tokenizer> tokenizer_;

  ThreadPool threads_;
  Arena arena_;
  const ExecutionContext ctx_;
  const ParameterTable table_;
  Parameters weights_, gradients_, adam_m_, adam_v_;
  const GlaModel model_;
  std::optional<Evaluator> evaluator_;  // none: the validation split is empty

  std::vector<int32_t> tokens_, labels_;  // [micro batch, T]
  std::vector<float> loss_;               // [micro batch, T]
  gla::v1::TrainState state_;
  std::string parent_;           // checkpoint resumed from
  int64_t saved_step_ = 0;       // of the last checkpoint
  int64_t evaluated_step_ = -1;  // of the last evaluation
  v1::Progress progress_;
  StepClock clock_;
  std::optional<MetricsLog> metrics_;
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_TRAINER_H_
