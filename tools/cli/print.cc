#include "tools/cli/print.h"

#include <cmath>
#include <iostream>

#include "absl/strings/str_format.h"
#include "google/protobuf/util/json_util.h"

namespace gla::cli {

void PrintJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status =
      google::protobuf::util::MessageToJsonString(message, &json, options);
  std::cout << (status.ok() ? json : "{}") << std::endl;
}

std::string FormatSeconds(double seconds) {
  const int64_t total = std::llround(std::max(0.0, seconds));
  if (total < 60) return absl::StrFormat("%ds", total);
  if (total < 3600) return absl::StrFormat("%dm%02ds", total / 60, total % 60);
  return absl::StrFormat("%dh%02dm", total / 3600, total / 60 % 60);
}

std::string FormatCount(double count) {
  if (count >= 1e6) return absl::StrFormat("%.1fM", count / 1e6);
  if (count >= 1e3) return absl::StrFormat("%.1fk", count / 1e3);
  return absl::StrFormat("%.0f", count);
}

}  // namespace gla::cli
