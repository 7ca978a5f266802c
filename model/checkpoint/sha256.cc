#include "model/checkpoint/sha256.h"

#include <openssl/evp.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"

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
  const std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path.c_str(), "rbe"),
                                                   &fclose);
  if (file == nullptr) {
    const std::string message =
        absl::StrCat(path, ": cannot open: ", strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message)
                           : absl::InternalError(message);
  }
  Sha256Stream stream;
  std::vector<char> buffer(1 << 20);
  size_t n;
  while ((n = fread(buffer.data(), 1, buffer.size(), file.get())) > 0) {
    stream.Update({buffer.data(), n});
  }
  if (ferror(file.get())) {
    return absl::InternalError(absl::StrCat(path, ": read failed"));
  }
  return stream.Finish();
}

}  // namespace gla
