#include "model/checkpoint/durable_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace gla {

namespace fs = std::filesystem;

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

absl::Status CreateDurableDirectories(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return absl::OkStatus();
  const fs::path above = fs::path(path).parent_path();
  const std::string parent = (above.empty() ? fs::path(".") : above).string();
  if (parent != path) RETURN_IF_ERROR(CreateDurableDirectories(parent));
  if (mkdir(path.c_str(), 0755) != 0 &&
      !(errno == EEXIST && fs::is_directory(path, error))) {
    return ErrnoStatus("create", path);
  }
  return SyncDirectory(parent);
}

absl::StatusOr<std::vector<std::string>> ListDirectory(
    const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(path, error);
  while (!error && entry != fs::directory_iterator()) {
    names.push_back(entry->path().filename());
    entry.increment(error);
  }
  if (error) {
    errno = error.value();
    return ErrnoStatus("list", path);
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool IsFileName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\0", 2)) ==
             std::string_view::npos;
}

InputFile::InputFile(std::string path, int fd, int64_t size)
    : path_(std::move(path)), fd_(fd), size_(size) {}

InputFile::InputFile(InputFile&& other)
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_) {}

InputFile::~InputFile() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<InputFile> InputFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("open", path);
  InputFile file(path, fd, 0);
  struct stat info = {};
  if (fstat(fd, &info) != 0) return ErrnoStatus("ask", path);
  if (!S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": not a regular file"));
  }
  file.size_ = info.st_size;
  return file;
}

absl::StatusOr<int64_t> InputFile::Read(char* buffer, int64_t size) {
  ssize_t n;
  do {
    n = read(fd_, buffer, size);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return ErrnoStatus("read", path_);
  return n;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  ASSIGN_OR_RETURN(InputFile file, InputFile::Open(path));
  std::string bytes;
  char buffer[1 << 16];
  while (true) {
    ASSIGN_OR_RETURN(const int64_t n, file.Read(buffer, sizeof(buffer)));
    if (n == 0) return bytes;
    bytes.append(buffer, n);
    if (static_cast<int64_t>(bytes.size()) > kMaxReadBytes) {
      return absl::OutOfRangeError(absl::StrCat(
          path, ": want at most ", kMaxReadBytes, " bytes, got more"));
    }
  }
}

}  // namespace gla
