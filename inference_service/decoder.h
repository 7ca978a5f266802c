// What the engine needs of a model: slots that hold a sequence's past each, and
// steps that feed tokens to them and draw the next.
#ifndef GLA_INFERENCE_SERVICE_DECODER_H_
#define GLA_INFERENCE_SERVICE_DECODER_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/sampling/sample_token.h"

namespace gla::inference {

// A drawn "token" when the logits held no number to choose by.
inline constexpr int32_t kNoToken = -1;

// One thread uses a decoder. What happens in a slot depends on what was fed to
// it since ResetSlot() alone, never on other slots or which slot it is.
class Decoder {
 public:
  virtual ~Decoder() = default;

  virtual int num_slots() const = 0;
  virtual int64_t bytes_per_slot() const = 0;

  // Makes a slot one that has seen nothing. Its contents are undefined before.
  virtual void ResetSlot(int slot) = 0;

  // Feeds prompt tokens (at least one) and returns the token drawn for output
  // position 0; `sampling` nullptr: draws none and returns kNoToken.
  virtual int32_t Prefill(int slot, absl::Span<const int32_t> tokens,
                          const SamplingOptions* sampling) = 0;

  struct StepInput {
    int slot = 0;  // all different
    int32_t token = 0;
    const SamplingOptions* sampling = nullptr;  // not null
    int64_t position = 0;                       // output position to draw for
  };
  // Feeds one token to each of some sequences and draws their next tokens.
  virtual void Step(absl::Span<const StepInput> inputs,
                    absl::Span<int32_t> next) = 0;
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_DECODER_H_
