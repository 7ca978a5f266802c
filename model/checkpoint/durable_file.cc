#include "model/checkpoint/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace gla {

absl::Status ErrnoStatus(const char* action, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot ", action));
}

DurableFile::DurableFile(std::string path, int fd)
    : path_(std::move(path)), fd_(fd) {}

DurableFile::DurableFile(DurableFile&& other)
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

DurableFile::~DurableFile() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<DurableFile> DurableFile::Create(const std::string& path) {
  const int fd =
      open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus("create", path);
  return DurableFile(path, fd);
}

absl::Status DurableFile::Append(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno != EINTR) return ErrnoStatus("write", path_);
    bytes.remove_prefix(std::max<ssize_t>(n, 0));
  }
  return absl::OkStatus();
}

absl::Status DurableFile::Close() {
  if (fdatasync(fd_) != 0) return ErrnoStatus("sync", path_);
  if (close(std::exchange(fd_, -1)) != 0) return ErrnoStatus("close", path_);
  return absl::OkStatus();
}

absl::Status WriteDurableFile(const std::string& path, std::string_view bytes) {
  ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(path));
  RETURN_IF_ERROR(file.Append(bytes));
  return file.Close();
}

absl::Status SyncDirectory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("open", path);
  const absl::Status status =
      fsync(fd) == 0 ? absl::OkStatus() : ErrnoStatus("sync", path);
  close(fd);
  return status;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("open", path);
  std::string bytes;
  char buffer[1 << 16];
  ssize_t n;
  do {
    n = read(fd, buffer, sizeof(buffer));
    if (n > 0) bytes.append(buffer, n);
  } while (n > 0 || (n < 0 && errno == EINTR));
  const absl::Status status =
      n == 0 ? absl::OkStatus() : ErrnoStatus("read", path);
  close(fd);
  if (!status.ok()) return status;
  return bytes;
}

}  // namespace gla
