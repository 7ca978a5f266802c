#include "inference_service/text_stream.h"

#include <algorithm>
#include <utility>

#include "model/tokenizer/tokenizer.h"

namespace gla::inference {

TextStream::TextStream(std::vector<std::string> stop)
    : stop_(std::move(stop)) {}

std::string TextStream::Append(std::string_view bytes) {
  if (stopped()) return "";
  // A match that is not complete yet lies in `held_` from its first byte on,
  // because PossibleStop() never lets such an end go.
  for (const char byte : bytes) {
    held_.push_back(byte);
    if (const std::string* match = MatchAtEnd()) {
      matched_stop_ = *match;
      held_.resize(held_.size() - match->size());
      return Flush();
    }
  }
  const size_t safe = held_.size() - PossibleStop();
  return Release(CompleteUtf8Prefix(std::string_view(held_).substr(0, safe)));
}

std::string TextStream::Flush() { return std::exchange(held_, ""); }

const std::string* TextStream::MatchAtEnd() const {
  const std::string* longest = nullptr;
  for (const std::string& stop : stop_) {
    if (!held_.ends_with(stop)) continue;
    if (longest == nullptr || stop.size() > longest->size()) longest = &stop;
  }
  return longest;
}

size_t TextStream::PossibleStop() const {
  size_t longest = 0;
  for (const std::string& stop : stop_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > longest; --n) {
      if (held_.ends_with(std::string_view(stop).substr(0, n))) {
        longest = n;
      }
    }
  }
  return longest;
}

std::string TextStream::Release(size_t bytes) {
  std::string released = held_.substr(0, bytes);
  held_.erase(0, bytes);
  return released;
}

}  // namespace gla::inference
