#include "inference_service/generate_request.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"

namespace gla::inference {
namespace {

using absl::InvalidArgumentError;

absl::Status WithField(const char* field, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(field, ": ", status.message()));
}

absl::Status NeedsTokenizer(const char* field) {
  return absl::FailedPreconditionError(absl::StrCat(
      field, ": the model has no tokenizer; it takes token ids only"));
}

absl::StatusOr<std::vector<int32_t>> ParseText(const std::string& text,
                                               const Tokenizer* tokenizer) {
  if (text.empty()) return InvalidArgumentError("prompt.text: empty");
  if (tokenizer == nullptr) return NeedsTokenizer("prompt.text");
  absl::StatusOr<std::vector<int32_t>> tokens = tokenizer->Encode(text);
  if (!tokens.ok()) return WithField("prompt.text", tokens.status());
  if (tokens->empty()) return InvalidArgumentError("prompt.text: no tokens");
  return tokens;
}

absl::StatusOr<std::vector<int32_t>> ParseTokens(const v1::TokenIds& tokens,
                                                 int32_t vocab_size) {
  if (tokens.ids().empty()) return InvalidArgumentError("prompt.tokens: empty");
  for (int i = 0; i < tokens.ids_size(); ++i) {
    if (tokens.ids(i) < 0 || tokens.ids(i) >= vocab_size) {
      return InvalidArgumentError(
          absl::StrFormat("prompt.tokens.ids[%d]: want [0, %d), got %d", i,
                          vocab_size, tokens.ids(i)));
    }
  }
  return std::vector<int32_t>(tokens.ids().begin(), tokens.ids().end());
}

absl::StatusOr<std::vector<int32_t>> ParsePrompt(const v1::Prompt& prompt,
                                                 const Tokenizer* tokenizer,
                                                 int32_t vocab_size) {
  switch (prompt.kind_case()) {
    case v1::Prompt::kText:
      return ParseText(prompt.text(), tokenizer);
    case v1::Prompt::kTokens:
      return ParseTokens(prompt.tokens(), vocab_size);
    case v1::Prompt::KIND_NOT_SET:
      break;
  }
  return InvalidArgumentError("prompt: want text or tokens, got neither");
}

absl::StatusOr<SamplingOptions> ParseSampling(const v1::SamplingParams& params,
                                              uint64_t fresh_seed) {
  SamplingOptions sampling;
  sampling.temperature = params.has_temperature() ? params.temperature() : 1;
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature)) {
    return InvalidArgumentError(
        absl::StrFormat("sampling.temperature: want a number >= 0, got %g",
                        sampling.temperature));
  }
  if (params.has_top_k() && params.top_k() < 1) {
    return InvalidArgumentError(
        absl::StrFormat("sampling.top_k: want >= 1, got %d", params.top_k()));
  }
  sampling.top_k = params.top_k();  // 0 when unset: all
  sampling.top_p = params.has_top_p() ? params.top_p() : 1;
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return InvalidArgumentError(
        absl::StrFormat("sampling.top_p: want (0, 1], got %g", sampling.top_p));
  }
  sampling.seed = params.has_seed() ? params.seed() : fresh_seed;
  return sampling;
}

absl::StatusOr<std::vector<std::string>> ParseStop(
    const v1::SamplingParams& params, const Tokenizer* tokenizer) {
  if (params.stop().empty()) return std::vector<std::string>();
  if (tokenizer == nullptr) return NeedsTokenizer("sampling.stop");
  if (params.stop_size() > kMaxStopStrings) {
    return InvalidArgumentError(
        absl::StrFormat("sampling.stop: want at most %d strings, got %d",
                        kMaxStopStrings, params.stop_size()));
  }
  for (int i = 0; i < params.stop_size(); ++i) {
    const std::string& stop = params.stop(i);
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return InvalidArgumentError(
          absl::StrFormat("sampling.stop[%d]: want 1 to %d bytes, got %d", i,
                          kMaxStopBytes, stop.size()));
    }
    if (absl::Status valid = ValidateUtf8(stop); !valid.ok()) {
      return WithField(absl::StrFormat("sampling.stop[%d]", i).c_str(), valid);
    }
  }
  return std::vector<std::string>(params.stop().begin(), params.stop().end());
}

}  // namespace

absl::StatusOr<GenerationRequest> ParseGenerateRequest(
    const v1::GenerateRequest& proto, const Tokenizer* tokenizer,
    int32_t vocab_size, uint64_t fresh_seed) {
  const v1::SamplingParams& params = proto.sampling();
  GenerationRequest request;
  ASSIGN_OR_RETURN(request.prompt,
                   ParsePrompt(proto.prompt(), tokenizer, vocab_size));
  ASSIGN_OR_RETURN(request.sampling, ParseSampling(params, fresh_seed));
  ASSIGN_OR_RETURN(request.stop, ParseStop(params, tokenizer));
  if (params.has_max_new_tokens()) {
    request.max_new_tokens = params.max_new_tokens();
  }
  if (request.max_new_tokens < 1) {
    return InvalidArgumentError(absl::StrFormat(
        "sampling.max_new_tokens: want >= 1, got %d", request.max_new_tokens));
  }
  request.ignore_eos = params.ignore_eos();
  return request;
}

}  // namespace gla::inference
