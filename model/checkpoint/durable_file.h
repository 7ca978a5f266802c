// Files and directory entries that are on disk when the call returns, and
// reading files that nobody vouches for.
//
// Errors carry the code of the system's error (NOT_FOUND, ALREADY_EXISTS,
// PERMISSION_DENIED, RESOURCE_EXHAUSTED when the disk is full, ...) and name
// the path.
#ifndef GLA_MODEL_CHECKPOINT_DURABLE_FILE_H_
#define GLA_MODEL_CHECKPOINT_DURABLE_FILE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

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

// Creates `path` and its missing parents; each new entry is on disk. A
// directory that is there already is fine.
absl::Status CreateDurableDirectories(const std::string& path);

// Names of a directory's entries, sorted.
absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path);

// Whether `name` is that of an entry of a directory: not empty, "." or "..",
// and without '/' or a zero byte. What a file claims to refer to is checked
// with this before it is opened.
bool IsFileName(std::string_view name);

// A regular file, open for reading.
class InputFile {
 public:
  // FAILED_PRECONDITION for anything else (a directory, a device, a FIFO,
  // which does not block).
  static absl::StatusOr<InputFile> Open(const std::string& path);
  InputFile(InputFile&& other);
  InputFile& operator=(InputFile&&) = delete;
  ~InputFile();

  int fd() const { return fd_; }
  int64_t size() const { return size_; }  // bytes, when it was opened

  // Reads up to `size` bytes from where the last read ended; 0: the end.
  absl::StatusOr<int64_t> Read(char* buffer, int64_t size);

 private:
  InputFile(std::string path, int fd, int64_t size);

  std::string path_;
  int fd_;  // -1: moved away
  int64_t size_;
};

// Far more than any config, index, MANIFEST or tokenizer takes, and little
// enough to hold in memory whatever a path turns out to name.
inline constexpr int64_t kMaxReadBytes = int64_t{64} << 20;

// The whole content of a regular file. OUT_OF_RANGE: over kMaxReadBytes.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace gla

#endif  // GLA_MODEL_CHECKPOINT_DURABLE_FILE_H_
