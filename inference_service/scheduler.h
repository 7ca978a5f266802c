// What the engine does next: a pure function of who is there.
//
// A step is at most one prefill chunk and one batched decode step, so what a
// running sequence waits for its next token is bounded by one chunk, however
// long the prompts that come in. Slots and prefill go by order of arrival.
#ifndef GLA_INFERENCE_SERVICE_SCHEDULER_H_
#define GLA_INFERENCE_SERVICE_SCHEDULER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"

namespace gla::inference {

// What the scheduler knows of a sequence.
struct SequenceView {
  bool has_slot = false;
  int64_t prompt_tokens = 0;  // >= 1
  int64_t prompt_fed = 0;     // == prompt_tokens: it decodes
  bool parked = false;        // takes no tokens now
};

// Tokens [begin, end) of a sequence's prompt. Borders are multiples of the
// chunk length counted from the prompt's start, but for the prompt's end: how
// a prompt is cut depends on nothing else, and so neither does its result.
struct PrefillChunk {
  int sequence = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

// Sequences are named by their index in the argument of PlanStep.
struct StepPlan {
  std::vector<int> admit;   // get a free slot each, before the rest happens
  std::vector<int> decode;  // get one more token each
  std::optional<PrefillChunk> prefill;

  bool empty() const { return admit.empty() && decode.empty() && !prefill; }
};

// `sequences` are in order of arrival. REQUIRES: chunk_tokens >= 1; prompt_fed
// of every sequence is a multiple of it or the whole prompt.
StepPlan PlanStep(absl::Span<const SequenceView> sequences, int free_slots,
                  int64_t chunk_tokens);

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_SCHEDULER_H_
