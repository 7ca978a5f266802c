// SHA-256 of bytes and files (OpenSSL).
#ifndef GLA_MODEL_CHECKPOINT_SHA256_H_
#define GLA_MODEL_CHECKPOINT_SHA256_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace gla {

// A digest built up piece by piece. Digests are 32 raw bytes.
class Sha256Stream {
 public:
  Sha256Stream();
  ~Sha256Stream();
  Sha256Stream(const Sha256Stream&) = delete;
  Sha256Stream& operator=(const Sha256Stream&) = delete;

  void Update(std::string_view bytes);
  std::string Finish();  // once, last

 private:
  void* context_;  // EVP_MD_CTX
};

std::string Sha256(std::string_view bytes);

// Of a regular file; errors are those of InputFile (durable_file.h).
absl::StatusOr<std::string> Sha256OfFile(const std::string& path);

}  // namespace gla

#endif  // GLA_MODEL_CHECKPOINT_SHA256_H_
