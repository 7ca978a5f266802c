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

// NOT_FOUND or INTERNAL when the file cannot be read; names it.
absl::StatusOr<std::string> Sha256OfFile(const std::string& path);

}  // namespace gla

#endif  // GLA_MODEL_CHECKPOINT_SHA256_H_
