// One service per storage folder.
#ifndef GLA_TRAINER_SERVICE_STORAGE_LOCK_H_
#define GLA_TRAINER_SERVICE_STORAGE_LOCK_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace gla::trainer {

// Holds <folder>/lock until it is destroyed or the process ends, however it
// ends.
class StorageLock {
 public:
  // Creates the folder if needed. FAILED_PRECONDITION: another process holds
  // the lock. Other errors say why the folder cannot be made or written.
  static absl::StatusOr<std::unique_ptr<StorageLock>> Acquire(
      const std::string& folder);
  ~StorageLock();
  StorageLock(const StorageLock&) = delete;
  StorageLock& operator=(const StorageLock&) = delete;

 private:
  explicit StorageLock(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_STORAGE_LOCK_H_
