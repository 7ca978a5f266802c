#include "inference_service/testing/fake_decoder.h"

#include "absl/strings/str_cat.h"
#include "glog/logging.h"

namespace gla::inference {
namespace {

// splitmix64's mixing of a state and one more value.
uint64_t Mix(uint64_t state, uint64_t value) {
  uint64_t z = state * 0x9e3779b97f4a7c15 + value + 1;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

int32_t TokenOf(uint64_t state, const SamplingOptions& sampling,
                int64_t position) {
  return static_cast<int32_t>(Mix(Mix(state, sampling.seed), position) %
                              FakeDecoder::kVocabSize);
}

}  // namespace

std::vector<int32_t> FakeDecoder::Expected(const std::vector<int32_t>& prompt,
                                           const SamplingOptions& sampling,
                                           int n) {
  uint64_t state = 0;
  for (int32_t token : prompt) state = Mix(state, token);
  std::vector<int32_t> tokens;
  for (int position = 0; position < n; ++position) {
    tokens.push_back(TokenOf(state, sampling, position));
    state = Mix(state, tokens.back());
  }
  return tokens;
}

void FakeDecoder::Hold() {
  std::lock_guard lock(mutex_);
  held_ = true;
}

std::string FakeDecoder::AwaitCall() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !at_door_.empty(); });
  return at_door_;
}

void FakeDecoder::LetOneThrough() {
  std::lock_guard lock(mutex_);
  CHECK(!at_door_.empty());
  at_door_.clear();
  changed_.notify_all();
}

void FakeDecoder::LetGo() {
  std::lock_guard lock(mutex_);
  held_ = false;
  at_door_.clear();
  changed_.notify_all();
}

void FakeDecoder::Door(const std::string& call) {
  std::unique_lock lock(mutex_);
  if (!held_) return;
  at_door_ = call;
  changed_.notify_all();
  changed_.wait(lock, [&] { return at_door_.empty(); });
}

void FakeDecoder::ResetSlot(int slot) {
  slots_[slot] = 0;
  fed_[slot] = 0;
}

int32_t FakeDecoder::Draw(int slot, const SamplingOptions& sampling,
                          int64_t position) {
  if (position == broken_position_) return kNoToken;
  return TokenOf(slots_[slot], sampling, position);
}

int32_t FakeDecoder::Prefill(int slot, absl::Span<const int32_t> tokens,
                             const SamplingOptions* sampling) {
  CHECK(!tokens.empty());
  const int64_t end = fed_[slot] + static_cast<int64_t>(tokens.size());
  Door(absl::StrCat("prefill ", slot, " ", fed_[slot], "-", end));
  fed_[slot] = end;
  for (int32_t token : tokens) slots_[slot] = Mix(slots_[slot], token);
  return sampling == nullptr ? kNoToken : Draw(slot, *sampling, 0);
}

void FakeDecoder::Step(absl::Span<const StepInput> inputs,
                       absl::Span<int32_t> next) {
  CHECK_EQ(inputs.size(), next.size());
  std::string call = "step";
  for (const StepInput& input : inputs) absl::StrAppend(&call, " ", input.slot);
  Door(call);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const StepInput& in = inputs[i];
    slots_[in.slot] = Mix(slots_[in.slot], in.token);
    next[i] = Draw(in.slot, *in.sampling, in.position);
  }
}

}  // namespace gla::inference
