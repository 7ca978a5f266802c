// Text from tokens as they come: whole characters, ended by stop strings.
#ifndef GLA_INFERENCE_SERVICE_TEXT_STREAM_H_
#define GLA_INFERENCE_SERVICE_TEXT_STREAM_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace gla::inference {

// Fed the bytes of one token after the other, gives back what may be shown
// already: it holds back the beginning of a character and whatever may yet
// turn out to be a stop string. What it gives back in all depends on the bytes
// alone, never on how they were cut into tokens:
//   no stop string in the bytes: all of them, once Flush() has been called;
//   else what stands before the match that is complete first (of matches that
//   end at the same byte, the longest).
// Every piece ends on a character border. Bytes that are not UTF-8 pass through
// as they are once nothing could complete them. Thread-compatible.
class TextStream {
 public:
  explicit TextStream(std::vector<std::string> stop);  // none is empty

  // What can be shown now that `bytes` has come. Nothing more comes after a
  // match.
  std::string Append(std::string_view bytes);

  // The end of the output: gives back what was held back.
  std::string Flush();

  bool stopped() const { return !matched_stop_.empty(); }
  const std::string& matched_stop() const { return matched_stop_; }

 private:
  // Of the stop strings that `held_` ends with, the longest; nullptr: none.
  const std::string* MatchAtEnd() const;
  // Length of the longest end of `held_` that a stop string begins with.
  size_t PossibleStop() const;
  std::string Release(size_t bytes);

  const std::vector<std::string> stop_;
  std::string held_;  // has come and was not given back
  std::string matched_stop_;
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_TEXT_STREAM_H_
