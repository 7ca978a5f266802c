// Files and directory entries that are on disk when the call returns.
//
// Errors carry the code of the system's error (NOT_FOUND, ALREADY_EXISTS,
// PERMISSION_DENIED, RESOURCE_EXHAUSTED when the disk is full, ...) and name
// the path.
#ifndef GLA_MODEL_CHECKPOINT_DURABLE_FILE_H_
#define GLA_MODEL_CHECKPOINT_DURABLE_FILE_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gla {

// The status of the errno of a call that has just failed: "PATH: cannot
// ACTION: ...".
absl::Status ErrnoStatus(const char* action, const std::string& path);

// A new file, written front to back. Its content is undefined until Close().
class DurableFile {
 public:
  // ALREADY_EXISTS rather than overwrite.
  static absl::StatusOr<DurableFile> Create(const std::string& path);
  DurableFile(DurableFile&& other);
  DurableFile& operator=(DurableFile&&) = delete;
  ~DurableFile();

  absl::Status Append(std::string_view bytes);
  // Syncs the content and closes. The directory's entry is not synced.
  absl::Status Close();

 private:
  DurableFile(std::string path, int fd);

  std::string path_;
  int fd_;  // -1: closed
};

// Creates, writes, syncs: DurableFile for content that is at hand.
absl::Status WriteDurableFile(const std::string& path, std::string_view bytes);

// Makes the entries of a directory durable: files that were created in it,
// renamed into it or removed from it.
absl::Status SyncDirectory(const std::string& path);

// The whole content.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace gla

#endif  // GLA_MODEL_CHECKPOINT_DURABLE_FILE_H_
