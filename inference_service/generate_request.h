// The edge: a GenerateRequest from the wire becomes one that the engine trusts.
#ifndef GLA_INFERENCE_SERVICE_GENERATE_REQUEST_H_
#define GLA_INFERENCE_SERVICE_GENERATE_REQUEST_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "gla/inference/v1/inference.pb.h"
#include "inference_service/sequence.h"
#include "model/tokenizer/tokenizer.h"

namespace gla::inference {

inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopBytes = 256;  // of one stop string

// Checks everything about a request but its model's name, tokenizes the prompt
// and fills in the defaults that inference.proto names; `fresh_seed` is the
// seed when none is given. `tokenizer` nullptr: the model takes token ids only.
// The deadline is left unset.
// INVALID_ARGUMENT names the field, what it wants and what it got;
// FAILED_PRECONDITION: text for a model without a tokenizer.
absl::StatusOr<GenerationRequest> ParseGenerateRequest(
    const v1::GenerateRequest& proto, const Tokenizer* tokenizer,
    int32_t vocab_size, uint64_t fresh_seed);

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_GENERATE_REQUEST_H_
