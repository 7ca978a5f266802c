#include "model/tokenizer/sentencepiece_training_text.h"

#include <algorithm>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "model/tokenizer/tokenizer.h"

namespace gla {
namespace {

// Characters that the trainer marks its own data with: tab, NUL, and U+2581 and
// U+2585, which begin with the same two bytes.
constexpr std::string_view kReserved("\t\0", 2);
constexpr std::string_view kReservedBlocks = "\xe2\x96";

// The size of the reserved character that `text` begins with; 0: none.
size_t ReservedSize(std::string_view text) {
  if (kReserved.find(text[0]) != std::string_view::npos) return 1;
  const bool block = text.substr(0, 2) == kReservedBlocks && text.size() > 2 &&
                     (text[2] == '\x81' || text[2] == '\x85');
  return block ? 3 : 0;
}

// Where a sentence that begins `text` ends: before a reserved character, or
// after kMaxSentenceBytes at a space if there is one, else at a character.
size_t SentenceEnd(std::string_view text) {
  const size_t limit = std::min(text.size(), TrainingText::kMaxSentenceBytes);
  size_t end = 0;
  while (end < limit && ReservedSize(text.substr(end)) == 0) ++end;
  if (end < limit || end == text.size()) return end;
  const size_t space = text.rfind(' ', end);
  if (space != std::string_view::npos && space > 0) return space;
  return CompleteUtf8Prefix(text.substr(0, end));
}

// All of a file is UTF-8; a line never ends inside a character.
absl::Status CheckUtf8(const std::string& path, std::ifstream* file) {
  std::string line;
  int64_t offset = 0;
  while (std::getline(*file, line)) {
    const absl::Status status = ValidateUtf8(line);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ", in the line from byte ", offset, ": ", status.message()));
    }
    offset += static_cast<int64_t>(line.size()) + 1;
  }
  return absl::OkStatus();
}

}  // namespace

TrainingText::TrainingText(std::ifstream file, int64_t stride)
    : file_(std::move(file)), stride_(stride) {}

absl::StatusOr<std::unique_ptr<TrainingText>> TrainingText::Open(
    const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const int64_t size = file ? static_cast<int64_t>(file.tellg()) : -1;
  file.seekg(0);
  if (!file || file.peek() == std::ifstream::traits_type::eof()) {
    return size == 0 ? absl::InvalidArgumentError(absl::StrCat(path, ": empty"))
                     : absl::NotFoundError(absl::StrCat(path, ": cannot read"));
  }
  RETURN_IF_ERROR(CheckUtf8(path, &file));
  file.clear();
  file.seekg(0);
  return std::unique_ptr<TrainingText>(
      new TrainingText(std::move(file), (size - 1) / kMaxBytes + 1));
}

bool TrainingText::NextLine() {
  place_ = 0;
  while (std::getline(file_, line_)) {
    if (lines_++ % stride_ == 0) return true;
  }
  line_.clear();
  return false;
}

bool TrainingText::Next(std::string* sentence) {
  sentence->clear();
  while (sentence->empty()) {
    if (place_ >= line_.size() && !NextLine()) return false;
    const std::string_view rest = std::string_view(line_).substr(place_);
    if (rest.empty()) continue;
    const size_t end = SentenceEnd(rest);
    sentence->assign(rest.substr(0, end));
    place_ += end;
    if (end < rest.size()) place_ += ReservedSize(rest.substr(end));
  }
  return true;
}

}  // namespace gla
