// From text files to a dataset directory.
#ifndef GLA_TRAINER_SERVICE_DATA_TOKENIZE_TEXT_H_
#define GLA_TRAINER_SERVICE_DATA_TOKENIZE_TEXT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gla/v1/dataset.pb.h"
#include "model/tokenizer/tokenizer.h"

namespace gla {

struct TokenizeOptions {
  std::vector<std::string> inputs;  // UTF-8 text files, read in order
  std::string output;  // directory, created; must not hold a dataset
  // Share of the bytes, from the end of each file (cut at a line border), that
  // goes to the validation split; in [0, 1).
  double holdout = 0.05;
};

// Encodes every file, writes the shards of both splits, a copy of the tokenizer
// and, last, manifest.json. When a tokenizer has an end-of-text id, it follows
// each file's text in each split. Returns the manifest.
//   NOT_FOUND            an input is missing
//   INVALID_ARGUMENT     not UTF-8 (file and byte offset), nothing to train on
//   ALREADY_EXISTS       output holds a dataset
absl::StatusOr<gla::v1::DatasetManifest> TokenizeText(
    const Tokenizer& tokenizer, const TokenizeOptions& options);

// The border in `text` between training and held-out bytes: the start of the
// first line at or after (1 - holdout) of it.
size_t HoldoutBegin(std::string_view text, double holdout);

}  // namespace gla

#endif  // GLA_TRAINER_SERVICE_DATA_TOKENIZE_TEXT_H_
