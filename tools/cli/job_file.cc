#include "tools/cli/job_file.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"

namespace gla::cli {
namespace {

// Keeps the first error, with its place.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    if (!text.empty()) return;
    text = absl::StrCat(line + 1, ":", column + 1, ": ", message);
  }
  std::string text;
};

}  // namespace

absl::StatusOr<trainer::v1::JobSpec> ReadJobFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::error_code system;
  if (!file || std::filesystem::is_directory(path, system)) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot read this file"));
  }
  const std::string text((std::istreambuf_iterator<char>(file)),
                         std::istreambuf_iterator<char>());
  FirstError error;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  trainer::v1::JobSpec spec;
  if (!parser.ParseFromString(text, &spec)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", error.text));
  }
  if (!spec.data().dataset().empty()) {
    const auto dataset =
        std::filesystem::absolute(spec.data().dataset(), system);
    if (system) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": data.dataset: ", spec.data().dataset(),
                       ": cannot make it absolute: ", system.message()));
    }
    spec.mutable_data()->set_dataset(dataset.lexically_normal().string());
  }
  return spec;
}

}  // namespace gla::cli
