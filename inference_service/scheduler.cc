#include "inference_service/scheduler.h"

#include <algorithm>

#include "glog/logging.h"

namespace gla::inference {

StepPlan PlanStep(absl::Span<const SequenceView> sequences, int free_slots,
                  int64_t chunk_tokens) {
  StepPlan plan;
  for (int i = 0; i < static_cast<int>(sequences.size()); ++i) {
    const SequenceView& sequence = sequences[i];
    if (!sequence.has_slot) {
      if (free_slots == 0) continue;
      --free_slots;
      plan.admit.push_back(i);
    }
    if (sequence.prompt_fed == sequence.prompt_tokens) {
      if (!sequence.parked) plan.decode.push_back(i);
    } else if (!plan.prefill) {
      const int64_t begin = sequence.prompt_fed;
      CHECK_EQ(begin % chunk_tokens, 0);
      plan.prefill = PrefillChunk{
          i, begin, std::min(begin + chunk_tokens, sequence.prompt_tokens)};
    }
  }
  return plan;
}

}  // namespace gla::inference
