#include "model/checkpoint/sha256.h"

#include <openssl/evp.h>

#include <cstdint>
#include <vector>

#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "model/checkpoint/durable_file.h"

namespace gla {
namespace {

EVP_MD_CTX* Context(void* context) { return static_cast<EVP_MD_CTX*>(context); }

}  // namespace

Sha256Stream::Sha256Stream() : context_(EVP_MD_CTX_new()) {
  CHECK_EQ(EVP_DigestInit_ex(Context(context_), EVP_sha256(), nullptr), 1);
}

Sha256Stream::~Sha256Stream() { EVP_MD_CTX_free(Context(context_)); }

void Sha256Stream::Update(std::string_view bytes) {
  CHECK_EQ(EVP_DigestUpdate(Context(context_), bytes.data(), bytes.size()), 1);
}

std::string Sha256Stream::Finish() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  CHECK_EQ(EVP_DigestFinal_ex(Context(context_), digest, &size), 1);
  return std::string(reinterpret_cast<char*>(digest), size);
}

std::string Sha256(std::string_view bytes) {
  Sha256Stream stream;
  stream.Update(bytes);
  return stream.Finish();
}

absl::StatusOr<std::string> Sha256OfFile(const std::string& path) {
  ASSIGN_OR_RETURN(InputFile file, InputFile::Open(path));
  Sha256Stream stream;
  std::vector<char> buffer(1 << 20);
  while (true) {
    ASSIGN_OR_RETURN(const int64_t n, file.Read(buffer.data(), buffer.size()));
    if (n == 0) return stream.Finish();
    stream.Update({buffer.data(), static_cast<size_t>(n)});
  }
}

}  // namespace gla
