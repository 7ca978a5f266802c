#include "trainer_service/metrics_log.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace gla::trainer {
namespace {

// Bytes of whole rows up to and including `last_step`.
int64_t KeptBytes(const std::string& path, int64_t last_step) {
  std::ifstream file(path, std::ios::binary);
  int64_t kept = 0;
  for (std::string row; std::getline(file, row) && !file.eof();) {
    long long step = 0;
    if (sscanf(row.c_str(), "{\"step\":%lld,", &step) != 1) break;
    if (step > last_step) break;
    kept += static_cast<int64_t>(row.size()) + 1;
  }
  return kept;
}

}  // namespace

absl::StatusOr<MetricsLog> MetricsLog::Open(const std::string& path,
                                            int64_t last_step,
                                            int32_t attempt) {
  std::error_code error;
  if (std::filesystem::exists(path, error)) {
    std::filesystem::resize_file(path, KeptBytes(path, last_step), error);
  }
  FILE* file = error ? nullptr : fopen(path.c_str(), "ae");
  if (file == nullptr) {
    return absl::PermissionDeniedError(absl::StrCat("cannot write ", path));
  }
  return MetricsLog(file, path, attempt);
}

absl::Status MetricsLog::WriteStep(const v1::Progress& progress) {
  fprintf(file_.get(),
          "{\"step\":%lld,\"attempt\":%d,\"loss\":%.17g,"
          "\"learning_rate\":%.17g,\"grad_norm\":%.17g,"
          "\"tokens_per_second\":%.1f}\n",
          static_cast<long long>(progress.step()), attempt_, progress.loss(),
          progress.learning_rate(), progress.grad_norm(),
          progress.tokens_per_second());
  return Flush();
}

absl::Status MetricsLog::WriteEvaluation(const v1::Progress& progress) {
  fprintf(file_.get(),
          "{\"step\":%lld,\"attempt\":%d,\"evaluation_loss\":%.17g,"
          "\"evaluation_bits_per_byte\":%.17g}\n",
          static_cast<long long>(progress.step()), attempt_,
          progress.evaluation_loss(), progress.evaluation_bits_per_byte());
  return Flush();
}

absl::Status MetricsLog::Flush() {
  if (fflush(file_.get()) == 0 && ferror(file_.get()) == 0) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("cannot write ", path_, ": ", strerror(errno)));
}

void StepClock::Add(double seconds) { seconds_[count_++ % kSteps] = seconds; }

double StepClock::mean_seconds() const {
  const int64_t n = std::min<int64_t>(count_, kSteps);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += seconds_[i];
  return n == 0 ? 0 : sum / static_cast<double>(n);
}

}  // namespace gla::trainer
