#include "model/checkpoint/manifest.h"

#include <filesystem>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/sha256.h"

namespace gla {
namespace {

namespace fs = std::filesystem;

constexpr int kFormatVersion = 1;
constexpr char kManifest[] = "MANIFEST";
constexpr size_t kDigestBytes = 32;

absl::Status CheckFile(const std::string& directory,
                       const gla::v1::FileEntry& file) {
  const std::string path = absl::StrCat(directory, "/", file.path());
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (error) {
    return absl::DataLossError(
        absl::StrCat(path, ": cannot read its size: ", error.message()));
  }
  if (static_cast<int64_t>(size) != file.size_bytes()) {
    return absl::DataLossError(absl::StrCat(path, ": manifest says ",
                                            file.size_bytes(),
                                            " bytes, file has ", size));
  }
  ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(path));
  if (digest != file.sha256()) {
    return absl::DataLossError(absl::StrCat(
        path, ": manifest says SHA-256 ", absl::BytesToHexString(file.sha256()),
        ", file has ", absl::BytesToHexString(digest)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteManifest(const std::string& directory,
                           gla::v1::Manifest manifest) {
  manifest.set_format_version(kFormatVersion);
  const std::string bytes = manifest.SerializeAsString();
  return WriteDurableFile(absl::StrCat(directory, "/", kManifest),
                          absl::StrCat(bytes, Sha256(bytes)));
}

absl::StatusOr<gla::v1::Manifest> ReadManifest(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kManifest);
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  gla::v1::Manifest manifest;
  const std::string_view all = bytes;
  if (all.size() < kDigestBytes ||
      Sha256(all.substr(0, all.size() - kDigestBytes)) !=
          all.substr(all.size() - kDigestBytes) ||
      !manifest.ParseFromArray(all.data(), all.size() - kDigestBytes)) {
    return absl::DataLossError(
        absl::StrCat(path, ": its own SHA-256 does not hold"));
  }
  if (manifest.format_version() != kFormatVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": format_version: want ", kFormatVersion, ", got ",
                     manifest.format_version()));
  }
  return manifest;
}

absl::StatusOr<gla::v1::Manifest> VerifyCheckpoint(
    const std::string& directory) {
  ASSIGN_OR_RETURN(gla::v1::Manifest manifest, ReadManifest(directory));
  for (const gla::v1::FileEntry& file : manifest.files()) {
    RETURN_IF_ERROR(CheckFile(directory, file));
  }
  return manifest;
}

}  // namespace gla
