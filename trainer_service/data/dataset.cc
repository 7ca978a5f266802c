#include "trainer_service/data/dataset.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "google/protobuf/util/json_util.h"
#include "kernels/base/status_macros.h"
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

// Maps `path`, which must be exactly `want_bytes` long (> 0).
absl::StatusOr<const void*> MapFile(const std::string& path,
                                    int64_t want_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return absl::DataLossError(
        absl::StrCat(path, ": cannot open: ", strerror(errno)));
  }
  struct stat info = {};
  const bool sized = fstat(fd, &info) == 0;
  if (!sized || info.st_size != want_bytes) {
    close(fd);
    return absl::DataLossError(absl::StrCat(path, ": manifest says ",
                                            want_bytes, " bytes, file has ",
                                            sized ? info.st_size : -1));
  }
  void* data = mmap(nullptr, want_bytes, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (data == MAP_FAILED) {
    return absl::InternalError(
        absl::StrCat(path, ": cannot map: ", strerror(errno)));
  }
  return data;
}

// INVALID: an id outside the vocabulary; names the shard, place and id.
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

absl::StatusOr<std::unique_ptr<Dataset>> Dataset::Open(
    const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/manifest.json");
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat(
        directory, ": not a dataset directory: no readable manifest.json"));
  }
  const std::string json((std::istreambuf_iterator<char>(file)),
                         std::istreambuf_iterator<char>());
  auto dataset = std::unique_ptr<Dataset>(new Dataset);
  dataset->directory_ = directory;
  dataset->manifest_sha256_ = Sha256(json);
  const auto parsed =
      google::protobuf::util::JsonStringToMessage(json, &dataset->manifest_);
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
    stream->bytes_per_token_ = manifest.bytes_per_token();
    stream->text_bytes_ = split.text_bytes();
    for (const gla::v1::Shard& shard : split.shards()) {
      if (shard.tokens() == 0) continue;
      const std::string shard_path = absl::StrCat(directory, "/", shard.path());
      ASSIGN_OR_RETURN(
          const void* data,
          MapFile(shard_path, shard.tokens() * manifest.bytes_per_token()));
      stream->shards_.push_back({shard_path, data, shard.tokens()});
      stream->size_ += shard.tokens();
      RETURN_IF_ERROR(CheckIds(shard_path, data, manifest.bytes_per_token(),
                               shard.tokens(), manifest.vocab_size()));
    }
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
