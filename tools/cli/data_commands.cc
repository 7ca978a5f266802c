#include "tools/cli/data_commands.h"

#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/base/thread_pool.h"
#include "model/tokenizer/sentencepiece.h"
#include "model/tokenizer/tokenizer.h"
#include "trainer_service/data/tokenize_text.h"

namespace gla::cli {
namespace {

// The part of each input that training sees, joined in a temporary file: the
// tokenizer must not know the held-out text.
absl::Status WriteTrainingText(const std::vector<std::string>& inputs,
                               double holdout, const std::string& path) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  for (const std::string& input : inputs) {
    std::ifstream in(input, std::ios::binary);
    std::error_code error;
    if (!in || std::filesystem::is_directory(input, error)) {
      return absl::NotFoundError(
          absl::StrCat(input, ": cannot read this file"));
    }
    const std::string text((std::istreambuf_iterator<char>(in)),
                           std::istreambuf_iterator<char>());
    out.write(text.data(), HoldoutBegin(text, holdout));
  }
  out.close();
  if (!out) return absl::InternalError(absl::StrCat(path, ": write failed"));
  return absl::OkStatus();
}

absl::Status TrainTokenizer(const Arguments& arguments, ExitCode*) {
  SentencePieceTraining training;
  ASSIGN_OR_RETURN(training.vocab_size,
                   arguments.GetInt<int32_t>("vocab_size"));
  ASSIGN_OR_RETURN(const double holdout, arguments.GetDouble("holdout"));
  if (!arguments.Has("output")) {
    return absl::InvalidArgumentError("--output=DIRECTORY is missing");
  }
  training.output_directory = arguments.Get("output");
  training.threads = HardwareThreads();
  std::error_code error;
  std::filesystem::create_directories(training.output_directory, error);
  if (error) {
    return absl::FailedPreconditionError(absl::StrCat(
        training.output_directory, ": cannot create: ", error.message()));
  }
  training.input_file =
      absl::StrCat(training.output_directory, "/training-text.tmp");
  absl::Status status =
      WriteTrainingText(arguments.positional, holdout, training.input_file);
  if (status.ok()) status = TrainSentencePiece(training);
  std::filesystem::remove(training.input_file, error);
  RETURN_IF_ERROR(status);
  std::cout << training.output_directory << ": " << training.vocab_size
            << " pieces" << std::endl;
  return absl::OkStatus();
}

absl::Status Tokenize(const Arguments& arguments, ExitCode*) {
  const std::string name = arguments.Get("tokenizer");
  if (name.empty() || !arguments.Has("output")) {
    return absl::InvalidArgumentError(absl::StrCat(
        name.empty() ? "--tokenizer=DIRECTORY|bytes" : "--output=DIRECTORY",
        " is missing"));
  }
  std::unique_ptr<Tokenizer> tokenizer;
  if (name == "bytes") {
    tokenizer = MakeByteTokenizer();
  } else {
    ASSIGN_OR_RETURN(tokenizer, LoadTokenizer(name));
  }
  TokenizeOptions options = {.inputs = arguments.positional,
                             .output = arguments.Get("output")};
  ASSIGN_OR_RETURN(options.holdout, arguments.GetDouble("holdout"));
  ASSIGN_OR_RETURN(const auto manifest, TokenizeText(*tokenizer, options));
  for (const auto& split : manifest.splits()) {
    std::cout << split.name() << ": " << split.tokens() << " tokens of "
              << split.text_bytes() << " bytes" << std::endl;
  }
  return absl::OkStatus();
}

constexpr int kManyInputs = 1 << 20;

}  // namespace

std::vector<Command> DataCommands() {
  const Flag holdout = {
      "holdout", "SHARE", "0.05",
      "end of each file kept for validation; give both verbs the same"};
  return {
      {.verb = "data tokenizer",
       .arguments = "TEXT_FILE...",
       .min_positional = 1,
       .max_positional = kManyInputs,
       .summary = "train a lossless SentencePiece tokenizer",
       .flags = {{"output", "DIRECTORY", "", "where tokenizer.model goes"},
                 {"vocab_size", "N", "4096", "pieces"},
                 holdout},
       .example = "gla data tokenizer book.txt --vocab_size=4096 "
                  "--output=run/tokenizer",
       .run = TrainTokenizer},
      {.verb = "data tokenize",
       .arguments = "TEXT_FILE...",
       .min_positional = 1,
       .max_positional = kManyInputs,
       .summary = "turn text into the token shards that a job trains on",
       .flags = {{"tokenizer", "DIRECTORY|bytes", "", "what encodes the text"},
                 {"output", "DIRECTORY", "", "the dataset; must be new"},
                 holdout},
       .example = "gla data tokenize book.txt --tokenizer=run/tokenizer "
                  "--output=run/dataset",
       .run = Tokenize},
  };
}

}  // namespace gla::cli
