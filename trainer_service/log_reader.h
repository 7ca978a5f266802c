// Reading a log file while others append to it.
#ifndef GLA_TRAINER_SERVICE_LOG_READER_H_
#define GLA_TRAINER_SERVICE_LOG_READER_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace gla::trainer {

// Up to 64 KiB of a log from a byte offset, cut after the last whole line; a
// line longer than that is cut anywhere. With `ended` (nobody writes any more)
// also a last line without an end. Empty: nothing more yet; a file that does
// not exist is empty. OUT_OF_RANGE: `offset` is negative or past the end of
// the file.
absl::StatusOr<std::string> ReadLog(const std::string& path, int64_t offset,
                                    bool ended);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_LOG_READER_H_
