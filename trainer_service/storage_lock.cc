#include "trainer_service/storage_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace gla::trainer {

absl::StatusOr<std::unique_ptr<StorageLock>> StorageLock::Acquire(
    const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    return absl::ErrnoToStatus(error.value(),
                               absl::StrCat("storage folder ", folder));
  }
  const int fd =
      open((folder + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("storage folder ", folder, " is not writable"));
  }
  std::unique_ptr<StorageLock> lock(new StorageLock(fd));
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "storage folder ", folder, " is in use by another trainer service"));
  }
  return lock;
}

StorageLock::~StorageLock() { close(fd_); }

}  // namespace gla::trainer
