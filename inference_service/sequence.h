// One request on its way through the engine: what is asked, where it stands,
// what its reader gets.
#ifndef GLA_INFERENCE_SERVICE_SEQUENCE_H_
#define GLA_INFERENCE_SERVICE_SEQUENCE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "inference_service/text_stream.h"
#include "kernels/sampling/sample_token.h"

namespace gla::inference {

// What a reader asked for. Validated at the edge; the engine trusts it.
struct GenerationRequest {
  std::vector<int32_t> prompt;  // not empty, ids in [0, vocab_size)
  SamplingOptions sampling;
  int32_t max_new_tokens = 256;   // >= 1
  std::vector<std::string> stop;  // none is empty
  bool ignore_eos = false;        // the end-of-text token is one like others
  absl::Time deadline = absl::InfiniteFuture();
};

enum class FinishReason { kStop, kLength };

// How a stream ended.
struct Finish {
  absl::Status status;  // OK: the output is complete and `reason` holds
  FinishReason reason = FinishReason::kStop;
  std::string matched_stop;  // the stop string, when one matched
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  absl::Duration queued;               // until it got a slot
  absl::Duration time_to_first_token;  // from arrival; zero: there was none
  absl::Duration total;                // from arrival
};

// A piece of a stream: what has come since the last one was taken.
struct Output {
  int64_t offset = 0;  // output position of the first token here
  std::vector<int32_t> tokens;
  std::string text;  // whole UTF-8 characters; lags behind the tokens where it
                     // may yet become a stop string
  std::optional<Finish> finish;  // nothing comes after it

  bool empty() const { return tokens.empty() && text.empty() && !finish; }
};

// Where a request stands. Belongs to the engine's thread.
struct Sequence {
  static constexpr int kNoSlot = -1;

  Sequence(uint64_t id, GenerationRequest r, absl::Time arrival)
      : id(id), request(std::move(r)), text(request.stop), arrival(arrival) {}

  const uint64_t id;
  const GenerationRequest request;
  TextStream text;
  int slot = kNoSlot;         // kNoSlot: waits in the queue
  int64_t prompt_fed = 0;     // tokens of the prompt that its state holds
  int64_t output_tokens = 0;  // so far
  int32_t last_token = -1;    // the newest output token, not in the state yet
  bool parked = false;        // its reader is behind
  bool done = false;          // finished or cancelled: has no slot
  const absl::Time arrival;
  absl::Time admitted = absl::InfinitePast();
  absl::Time first_token = absl::InfinitePast();
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_SEQUENCE_H_
