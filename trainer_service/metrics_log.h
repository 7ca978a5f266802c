// metrics.jsonl of a job: one JSON row per training step and per evaluation,
// over all attempts.
//
//   {"step":12,"attempt":1,"loss":..,"learning_rate":..,"grad_norm":..,
//    "tokens_per_second":..}
//   {"step":12,"attempt":1,"evaluation_loss":..,"evaluation_bits_per_byte":..}
//
// Numbers are written so that they read back to the same bits.
#ifndef GLA_TRAINER_SERVICE_METRICS_LOG_H_
#define GLA_TRAINER_SERVICE_METRICS_LOG_H_

#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gla/trainer/v1/trainer.pb.h"

namespace gla::trainer {

// Appends rows, each handed to the system when written. Thread-compatible.
class MetricsLog {
 public:
  // Drops the rows after `last_step`, which a resumed run computes again, and a
  // torn last row.
  static absl::StatusOr<MetricsLog> Open(const std::string& path,
                                         int64_t last_step, int32_t attempt);

  // RESOURCE_EXHAUSTED: the row could not be written whole (names the file).
  absl::Status WriteStep(const v1::Progress& progress);
  absl::Status WriteEvaluation(const v1::Progress& progress);

 private:
  struct Closer {
    void operator()(FILE* file) const { fclose(file); }
  };
  MetricsLog(FILE* file, const std::string& path, int32_t attempt)
      : file_(file), path_(path), attempt_(attempt) {}
  absl::Status Flush();

  std::unique_ptr<FILE, Closer> file_;
  std::string path_;
  int32_t attempt_;
};

// Mean duration of the last steps.
class StepClock {
 public:
  void Add(double seconds);
  double mean_seconds() const;  // 0 before the first step

 private:
  static constexpr int kSteps = 16;
  std::array<double, kSteps> seconds_ = {};
  int64_t count_ = 0;
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_METRICS_LOG_H_
