#include "inference_service/gla_decoder.h"

#include <algorithm>
#include <cmath>

#include "glog/logging.h"

namespace gla::inference {

GlaDecoder::GlaDecoder(const GlaModel* model, int num_slots, int num_threads)
    : model_(model),
      states_(model->config(), num_slots),
      threads_(num_threads),
      logits_(static_cast<int64_t>(num_slots) * model->config().vocab_size) {
  tokens_.reserve(num_slots);
  slots_.reserve(num_slots);
}

ExecutionContext GlaDecoder::context() {
  return {.device = Device::kCpu,
          .threads = &threads_,
          .scratch = &scratch_,
          .stream = nullptr};
}

TensorView<float, 1> GlaDecoder::logits_row(int64_t row) {
  const int64_t vocab_size = model_->config().vocab_size;
  return {logits_.data() + row * vocab_size, {vocab_size}};
}

int32_t GlaDecoder::Draw(int64_t row, const SamplingOptions& sampling,
                         int64_t position) {
  const TensorView<float, 1> logits = logits_row(row);
  const bool choosable =
      std::any_of(logits.data(), logits.data() + logits.size(),
                  [](float x) { return !std::isnan(x); });
  if (!choosable) return kNoToken;
  return SampleToken(context(), logits, sampling, position);
}

int32_t GlaDecoder::Prefill(int slot, absl::Span<const int32_t> tokens,
                            const SamplingOptions* sampling) {
  if (sampling == nullptr) {
    model_->Prefill(context(), tokens, slot, &states_, {});
    return kNoToken;
  }
  model_->Prefill(context(), tokens, slot, &states_, logits_row(0));
  return Draw(0, *sampling, /*position=*/0);
}

void GlaDecoder::Step(absl::Span<const StepInput> inputs,
                      absl::Span<int32_t> next) {
  CHECK_EQ(inputs.size(), next.size());
  tokens_.clear();
  slots_.clear();
  for (const StepInput& input : inputs) {
    tokens_.push_back(input.token);
    slots_.push_back(input.slot);
  }
  const int64_t n = static_cast<int64_t>(inputs.size());
  model_->DecodeStep(context(), tokens_, slots_, &states_,
                     {logits_.data(), {n, model_->config().vocab_size}});
  for (int64_t i = 0; i < n; ++i) {
    next[i] = Draw(i, *inputs[i].sampling, inputs[i].position);
  }
}

}  // namespace gla::inference
