#include "model/checkpoint/manifest.h"

#include <filesystem>
#include <set>
#include <string_view>
#include <system_error>
#include <vector>

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

// The names listed by a manifest that was read from `place`.
absl::StatusOr<std::set<std::string>> ListedNames(
    const std::string& place, const gla::v1::Manifest& manifest) {
  std::set<std::string> names;
  for (const gla::v1::FileEntry& file : manifest.files()) {
    const std::string quoted =
        absl::StrCat("\"", absl::CEscape(file.path()), "\"");
    if (!IsFileName(file.path()) || file.path() == kManifest) {
      return absl::DataLossError(absl::StrCat(
          place, ": ", quoted, ": want the name of another file beside it"));
    }
    if (!names.insert(file.path()).second) {
      return absl::DataLossError(
          absl::StrCat(place, ": ", quoted, ": listed twice"));
    }
  }
  return names;
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
  ASSIGN_OR_RETURN(
      const std::set<std::string> listed,
      ListedNames(absl::StrCat(directory, "/", kManifest), manifest));
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   ListDirectory(directory));
  for (const std::string& name : names) {
    if (name == kManifest || listed.contains(name)) continue;
    return absl::DataLossError(absl::StrCat(
        directory, "/", name, ": the manifest does not list this file"));
  }
  for (const gla::v1::FileEntry& file : manifest.files()) {
    RETURN_IF_ERROR(CheckFile(directory, file));
  }
  return manifest;
}

}  // namespace gla
