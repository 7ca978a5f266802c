#include "trainer_service/data/dataset.h"

#include <sys/mman.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "google/protobuf/util/json_util.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/sha256.h"

namespace gla {

struct TokenStream::MappedShard {
  std::string path;
  const void* data = nullptr;
  int64_t tokens = 0;
};

namespace {

int32_t TokenAt(const void* data, int bytes_per_token, int64_t i) {
  return bytes_per_token == 2
             ? static_cast<const uint16_t*>(data)[i]
             : static_cast<int32_t>(static_cast<const uint32_t*>(data)[i]);
}

// Maps `path`, which must hold exactly `tokens` (> 0) tokens.
absl::StatusOr<const void*> MapShard(const std::string& path, int64_t tokens,
                                     int bytes_per_token) {
  const auto file = InputFile::Open(path);
  if (!file.ok()) {
    return absl::DataLossError(std::string(file.status().message()));
  }
  // Compared in tokens: `tokens` may be anything, and its bytes overflow.
  if (file->size() % bytes_per_token != 0 ||
      file->size() / bytes_per_token != tokens) {
    return absl::DataLossError(absl::StrCat(
        path, ": manifest says ", tokens, " tokens of ", bytes_per_token,
        " bytes, file has ", file->size(), " bytes"));
  }
  void* data =
      mmap(nullptr, file->size(), PROT_READ, MAP_SHARED, file->fd(), 0);
  if (data == MAP_FAILED) return ErrnoStatus("map", path);
  return data;
}

// DATA_LOSS: an id outside the vocabulary; names the shard, place and id.
absl::Status CheckIds(const std::string& path, const void* data,
                      int bytes_per_token, int64_t tokens, int32_t vocab_size) {
  for (int64_t i = 0; i < tokens; ++i) {
    const int32_t id = TokenAt(data, bytes_per_token, i);
    if (id < 0 || id >= vocab_size) {
      return absl::DataLossError(absl::StrCat(path, ": token ", i, " is ", id,
                                              ", outside the vocabulary of ",
                                              vocab_size));
    }
  }
  return absl::OkStatus();
}

// Whether a split's numbers agree with each other.
absl::Status CheckSplit(const std::string& path, const gla::v1::Split& split) {
  const std::string place = absl::StrCat(path, ": split ", split.name());
  int64_t tokens = 0;
  for (const gla::v1::Shard& shard : split.shards()) {
    if (!IsFileName(shard.path())) {
      return absl::DataLossError(
          absl::StrCat(place, ": shard \"", absl::CEscape(shard.path()),
                       "\": want a file name in the directory"));
    }
    if (shard.tokens() < 0 ||
        __builtin_add_overflow(tokens, shard.tokens(), &tokens)) {
      return absl::DataLossError(absl::StrCat(place, ": shard ", shard.path(),
                                              ": got ", shard.tokens(),
                                              " tokens"));
    }
  }
  if (tokens != split.tokens()) {
    return absl::DataLossError(absl::StrCat(
        place, ": tokens: got ", split.tokens(), ", its shards have ", tokens));
  }
  if (split.text_bytes() < 0 || (tokens > 0 && split.text_bytes() == 0)) {
    return absl::DataLossError(absl::StrCat(place, ": textBytes: got ",
                                            split.text_bytes(), " for ", tokens,
                                            " tokens"));
  }
  return absl::OkStatus();
}

absl::Status CheckManifest(const std::string& path,
                           const gla::v1::DatasetManifest& manifest) {
  if (manifest.format_version() != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": formatVersion: want 1, got ", manifest.format_version()));
  }
  if (manifest.bytes_per_token() != 2 && manifest.bytes_per_token() != 4) {
    return absl::DataLossError(
        absl::StrCat(path, ": bytesPerToken: want 2 or 4, got ",
                     manifest.bytes_per_token()));
  }
  if (manifest.vocab_size() < 1) {
    return absl::DataLossError(absl::StrCat(
        path, ": vocabSize: want >= 1, got ", manifest.vocab_size()));
  }
  std::set<std::string> names;
  for (const gla::v1::Split& split : manifest.splits()) {
    if (!names.insert(split.name()).second) {
      return absl::DataLossError(
          absl::StrCat(path, ": split ", split.name(), ": listed twice"));
    }
    RETURN_IF_ERROR(CheckSplit(path, split));
  }
  return absl::OkStatus();
}

}  // namespace

TokenStream::TokenStream() = default;

TokenStream::~TokenStream() {
  for (const MappedShard& shard : shards_) {
    munmap(const_cast<void*>(shard.data), shard.tokens * bytes_per_token_);
  }
}

void TokenStream::Read(int64_t begin, absl::Span<int32_t> out) const {
  CHECK_GE(begin, 0);
  CHECK_LE(begin + static_cast<int64_t>(out.size()), size_);
  int64_t position = 0;  // stream position of the shard's first token
  size_t done = 0;
  for (const MappedShard& shard : shards_) {
    if (done == out.size()) break;
    const int64_t next = begin + static_cast<int64_t>(done);
    const int64_t end =
        std::min<int64_t>(position + shard.tokens, begin + out.size());
    for (int64_t i = next; i < end; ++i) {
      out[done++] = TokenAt(shard.data, bytes_per_token_, i - position);
    }
    position += shard.tokens;
  }
}

absl::Status TokenStream::Map(const std::string& directory,
                              const gla::v1::DatasetManifest& manifest,
                              const gla::v1::Split& split) {
  bytes_per_token_ = manifest.bytes_per_token();
  text_bytes_ = split.text_bytes();
  for (const gla::v1::Shard& shard : split.shards()) {
    if (shard.tokens() == 0) continue;
    const std::string path = absl::StrCat(directory, "/", shard.path());
    ASSIGN_OR_RETURN(const void* data,
                     MapShard(path, shard.tokens(), bytes_per_token_));
    shards_.push_back({path, data, shard.tokens()});
    size_ += shard.tokens();
    RETURN_IF_ERROR(CheckIds(path, data, bytes_per_token_, shard.tokens(),
                             manifest.vocab_size()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Dataset>> Dataset::Open(
    const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/manifest.json");
  const auto json = ReadFile(path);
  if (absl::IsNotFound(json.status())) {
    return absl::NotFoundError(
        absl::StrCat(directory, ": not a dataset directory: no manifest.json"));
  }
  if (!json.ok()) return json.status();
  auto dataset = std::unique_ptr<Dataset>(new Dataset);
  dataset->directory_ = directory;
  dataset->manifest_sha256_ = Sha256(*json);
  const auto parsed =
      google::protobuf::util::JsonStringToMessage(*json, &dataset->manifest_);
  if (!parsed.ok()) {
    return absl::DataLossError(
        absl::StrCat(path, ": ", std::string(parsed.message())));
  }
  const gla::v1::DatasetManifest& manifest = dataset->manifest_;
  RETURN_IF_ERROR(CheckManifest(path, manifest));
  dataset->train_.reset(new TokenStream);
  dataset->validation_.reset(new TokenStream);
  for (const gla::v1::Split& split : manifest.splits()) {
    TokenStream* stream = split.name() == "train" ? dataset->train_.get()
                          : split.name() == "validation"
                              ? dataset->validation_.get()
                              : nullptr;
    if (stream == nullptr) continue;  // a split that no reader asks for
    RETURN_IF_ERROR(stream->Map(directory, manifest, split));
  }
  return dataset;
}

absl::Status Dataset::VerifyDigests() const {
  for (const gla::v1::Split& split : manifest_.splits()) {
    for (const gla::v1::Shard& shard : split.shards()) {
      const std::string path = absl::StrCat(directory_, "/", shard.path());
      ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(path));
      if (digest != shard.sha256()) {
        return absl::DataLossError(
            absl::StrCat(path, ": SHA-256 differs from the manifest's"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace gla
