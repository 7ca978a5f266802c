// A tokenized text on disk: memory-mapped token shards and a manifest.
// (docs/dataset_format.md)
#ifndef GLA_TRAINER_SERVICE_DATA_DATASET_H_
#define GLA_TRAINER_SERVICE_DATA_DATASET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gla/v1/dataset.pb.h"

namespace gla {

// The shards of one split as one stream of token ids. Read-only, thread-safe.
class TokenStream {
 public:
  ~TokenStream();
  TokenStream(const TokenStream&) = delete;
  TokenStream& operator=(const TokenStream&) = delete;

  int64_t size() const { return size_; }  // tokens
  // Bytes of the text that the stream encodes.
  int64_t text_bytes() const { return text_bytes_; }

  // Copies tokens [begin, begin + out.size()). CHECK-fails out of range.
  void Read(int64_t begin, absl::Span<int32_t> out) const;

 private:
  friend class Dataset;
  struct MappedShard;
  TokenStream();
  // Appends the shards of a split of a checked manifest.
  absl::Status Map(const std::string& directory,
                   const gla::v1::DatasetManifest& manifest,
                   const gla::v1::Split& split);

  std::vector<MappedShard> shards_;
  int bytes_per_token_ = 2;
  int64_t size_ = 0;
  int64_t text_bytes_ = 0;
};

class Dataset {
 public:
  // NOT_FOUND: no such directory or no manifest.json in it. INVALID_ARGUMENT:
  // another format version. DATA_LOSS: the manifest contradicts itself or names
  // a shard outside the directory; a shard is missing, has another size than
  // the manifest says, or holds an id outside the vocabulary. Names file and
  // values. (Digests are checked by VerifyDigests.)
  static absl::StatusOr<std::unique_ptr<Dataset>> Open(
      const std::string& directory);

  const gla::v1::DatasetManifest& manifest() const { return manifest_; }
  // SHA-256 (32 bytes) of manifest.json: what a checkpoint is bound to.
  const std::string& manifest_sha256() const { return manifest_sha256_; }
  const std::string& directory() const { return directory_; }
  int32_t vocab_size() const { return manifest_.vocab_size(); }
  const TokenStream& train() const { return *train_; }
  // May be empty.
  const TokenStream& validation() const { return *validation_; }

  // DATA_LOSS naming the shard whose SHA-256 is not the manifest's.
  absl::Status VerifyDigests() const;

 private:
  Dataset() = default;
  std::string directory_;
  gla::v1::DatasetManifest manifest_;
  std::string manifest_sha256_;
  std::unique_ptr<TokenStream> train_, validation_;
};

}  // namespace gla

#endif  // GLA_TRAINER_SERVICE_DATA_DATASET_H_
