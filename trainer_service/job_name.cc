#include "trainer_service/job_name.h"

#include <algorithm>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace gla::trainer {
namespace {

bool IsJobId(const std::string& id) {
  return !id.empty() && id.size() <= 63 && absl::ascii_islower(id[0]) &&
         std::all_of(id.begin(), id.end(), [](unsigned char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
         });
}

}  // namespace

absl::Status CheckJobId(const std::string& id) {
  if (IsJobId(id)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "job_id: want [a-z][a-z0-9-]{0,62}, got \"", absl::CEscape(id), "\""));
}

absl::StatusOr<std::string> ParseJobName(const std::string& field,
                                         const std::string& name) {
  if (absl::StartsWith(name, "jobs/")) {
    const std::string id = name.substr(5);
    if (IsJobId(id)) return id;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      field, ": want jobs/{job_id}, got \"", absl::CEscape(name), "\""));
}

std::string MakeJobId(absl::Time now) {
  std::random_device random;
  return absl::StrFormat(
      "job-%s-%08x",
      absl::FormatTime("%Y%m%d-%H%M%S", now, absl::UTCTimeZone()), random());
}

}  // namespace gla::trainer
