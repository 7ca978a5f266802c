#include "trainer_service/log_reader.h"

#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace gla::trainer {
namespace {

constexpr int64_t kBatchBytes = 64 << 10;

}  // namespace

absl::StatusOr<std::string> ReadLog(const std::string& path, int64_t offset,
                                    bool ended) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const int64_t size = file ? static_cast<int64_t>(file.tellg()) : 0;
  if (offset < 0 || offset > size) {
    return absl::OutOfRangeError(
        absl::StrCat("offset: want 0 to ", size, ", got ", offset));
  }
  std::string data(std::min(kBatchBytes, size - offset), '\0');
  file.seekg(offset);
  file.read(data.data(), static_cast<std::streamsize>(data.size()));
  data.resize(static_cast<size_t>(file.gcount()));
  const size_t line_end = data.rfind('\n') + 1;  // 0: none
  const bool last = ended && offset + static_cast<int64_t>(data.size()) == size;
  const bool long_line =
      line_end == 0 && static_cast<int64_t>(data.size()) == kBatchBytes;
  if (!last && !long_line) data.resize(line_end);
  return data;
}

}  // namespace gla::trainer
