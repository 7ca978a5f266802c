// A GLA model as the engine sees it.
#ifndef GLA_INFERENCE_SERVICE_GLA_DECODER_H_
#define GLA_INFERENCE_SERVICE_GLA_DECODER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "inference_service/decoder.h"
#include "kernels/base/arena.h"
#include "kernels/base/execution_context.h"
#include "kernels/base/thread_pool.h"
#include "model/decode_states.h"
#include "model/gla_model.h"

namespace gla::inference {

// Owns the state slots, the threads and the scratch memory of one model; not
// the model. A repeated step allocates nothing.
class GlaDecoder : public Decoder {
 public:
  // `model` must outlive this.
  GlaDecoder(const GlaModel* model, int num_slots, int num_threads);

  int num_slots() const override { return states_.num_slots(); }
  int64_t bytes_per_slot() const override { return states_.bytes_per_slot(); }
  void ResetSlot(int slot) override { states_.SetZero(slot); }
  int32_t Prefill(int slot, absl::Span<const int32_t> tokens,
                  const SamplingOptions* sampling) override;
  void Step(absl::Span<const StepInput> inputs,
            absl::Span<int32_t> next) override;

 private:
  ExecutionContext context();
  TensorView<float, 1> logits_row(int64_t row);
  // From the logits of a row; kNoToken if none of them is a number.
  int32_t Draw(int64_t row, const SamplingOptions& sampling, int64_t position);

  const GlaModel* const model_;
  DecodeStates states_;
  ThreadPool threads_;
  Arena scratch_;
  std::vector<float> logits_;    // [num_slots, vocab_size]
  std::vector<int32_t> tokens_;  // of a step
  std::vector<int32_t> slots_;   // of a step
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_GLA_DECODER_H_
