#include "inference_service/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "glog/logging.h"

namespace gla::inference {

Engine::Engine(std::unique_ptr<Decoder> decoder, const Tokenizer* tokenizer,
               int32_t eos_id, Options options)
    : decoder_(std::move(decoder)),
      tokenizer_(tokenizer),
      eos_id_(eos_id),
      options_(std::move(options)) {
  for (int slot = decoder_->num_slots() - 1; slot >= 0; --slot) {
    free_slots_.push_back(slot);
  }
  stats_.slots = stats_.slots_free = decoder_->num_slots();
  thread_ = std::thread([this] { Run(); });
}

Engine::~Engine() {
  {
    std::lock_guard lock(mutex_);
    stop_ = wake_ = true;
  }
  woken_.notify_one();
  thread_.join();
}

// ---------------------------------------------------------------------------
// Any thread.

absl::StatusOr<Engine::StreamId> Engine::Submit(
    GenerationRequest request, std::function<void()> on_output) {
  std::lock_guard lock(mutex_);
  if (!accepting_) {
    return absl::UnavailableError("the server is shutting down");
  }
  if (live_ >= stats_.slots + options_.max_queued) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "the queue is full: %d requests wait for %d state slots",
        options_.max_queued, stats_.slots));
  }
  const StreamId id = ++last_id_;
  inbox_.push_back(
      std::make_unique<Sequence>(id, std::move(request), options_.clock()));
  streams_.emplace(id, Stream{std::move(on_output), {}});
  ++live_;
  ++stats_.queued;
  wake_ = true;
  woken_.notify_one();
  return id;
}

Output Engine::Take(StreamId id) {
  std::function<void()> on_output;  // destroyed after the lock is given up
  std::lock_guard lock(mutex_);
  const auto it = streams_.find(id);
  if (it == streams_.end()) return {};
  Output& pending = it->second.output;
  if (static_cast<int>(pending.tokens.size()) >= options_.stream_tokens) {
    wake_ = true;  // parked until now
    woken_.notify_one();
  }
  Output next;
  next.offset = pending.offset + static_cast<int64_t>(pending.tokens.size());
  Output taken = std::exchange(pending, std::move(next));
  if (taken.finish) {
    on_output = std::move(it->second.on_output);
    streams_.erase(it);
  }
  return taken;
}

void Engine::Cancel(StreamId id) {
  std::function<void()> on_output;  // destroyed after the lock is given up
  std::lock_guard lock(mutex_);
  const auto it = streams_.find(id);
  if (it == streams_.end()) return;
  on_output = std::move(it->second.on_output);
  streams_.erase(it);
  wake_ = true;
  woken_.notify_one();
}

EngineStats Engine::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

bool Engine::AwaitStats(absl::FunctionRef<bool(const EngineStats&)> want,
                        absl::Time deadline) const {
  std::unique_lock lock(mutex_);
  return stats_changed_.wait_until(lock, absl::ToChronoTime(deadline),
                                   [&] { return want(stats_); });
}

void Engine::StopAccepting() {
  std::lock_guard lock(mutex_);
  accepting_ = false;
}

void Engine::Abort(absl::Status status) {
  CHECK(!status.ok());
  std::lock_guard lock(mutex_);
  accepting_ = false;
  abort_request_ = std::move(status);
  wake_ = true;
  woken_.notify_one();
}

// ---------------------------------------------------------------------------
// The engine's thread.

void Engine::Run() {
  while (Receive()) {
    EndOverdue();
    const StepPlan plan =
        PlanStep(Views(), static_cast<int>(free_slots_.size()),
                 options_.prefill_chunk_tokens);
    Admit(plan.admit);
    RunDecode(plan.decode);
    if (plan.prefill) RunPrefill(*plan.prefill);
    idle_ = plan.empty();
    Publish();
  }
}

bool Engine::Receive() {
  std::unique_lock lock(mutex_);
  if (idle_) WaitUntilWoken(&lock);
  wake_ = false;
  if (stop_) return false;
  abort_status_ = abort_request_;
  std::move(inbox_.begin(), inbox_.end(), std::back_inserter(sequences_));
  inbox_.clear();
  NoteReaders();
  UpdateStats();
  return true;
}

void Engine::WaitUntilWoken(std::unique_lock<std::mutex>* lock) {
  absl::Time deadline = absl::InfiniteFuture();
  for (const auto& sequence : sequences_) {
    deadline = std::min(deadline, sequence->request.deadline);
  }
  const auto woken = [this] { return wake_; };
  if (deadline == absl::InfiniteFuture()) {
    woken_.wait(*lock, woken);
  } else {
    woken_.wait_until(*lock, absl::ToChronoTime(deadline), woken);
  }
}

void Engine::NoteReaders() {
  for (const auto& sequence : sequences_) {
    const auto stream = streams_.find(sequence->id);
    if (stream == streams_.end()) {
      Release(sequence.get());
      continue;
    }
    const size_t behind = stream->second.output.tokens.size();
    sequence->parked = static_cast<int>(behind) >= options_.stream_tokens;
  }
  std::erase_if(sequences_, [](const auto& s) { return s->done; });
}

void Engine::UpdateStats() {
  const int slots = decoder_->num_slots();
  stats_.slots_free = static_cast<int>(free_slots_.size());
  live_ = static_cast<int>(sequences_.size() + inbox_.size());
  stats_.queued = live_ - (slots - stats_.slots_free);
  stats_.parked =
      static_cast<int>(std::count_if(sequences_.begin(), sequences_.end(),
                                     [](const auto& s) { return s->parked; }));
  if (sequences_.empty()) CHECK_EQ(stats_.slots_free, slots);
  stats_changed_.notify_all();
}

void Engine::EndOverdue() {
  const absl::Time now = options_.clock();
  for (const auto& sequence : sequences_) {
    absl::Status status = abort_status_;
    if (status.ok() && now >= sequence->request.deadline) {
      status = absl::DeadlineExceededError(absl::StrFormat(
          "the deadline passed %s, after %d tokens",
          sequence->slot == Sequence::kNoSlot ? "in the queue" : "at work",
          sequence->output_tokens));
    }
    if (status.ok()) continue;
    Event event;
    event.stream = sequence->id;
    End(sequence.get(), status, FinishReason::kStop, &event);
    events_.push_back(std::move(event));
  }
  if (!events_.empty()) Publish();
}

std::vector<SequenceView> Engine::Views() const {
  std::vector<SequenceView> views;
  views.reserve(sequences_.size());
  for (const auto& s : sequences_) {
    views.push_back(
        {.has_slot = s->slot != Sequence::kNoSlot,
         .prompt_tokens = static_cast<int64_t>(s->request.prompt.size()),
         .prompt_fed = s->prompt_fed,
         .parked = s->parked});
  }
  return views;
}

void Engine::Admit(const std::vector<int>& indices) {
  if (indices.empty()) return;
  for (int i : indices) {
    CHECK(!free_slots_.empty());
    CHECK_EQ(sequences_[i]->slot, Sequence::kNoSlot);
    sequences_[i]->slot = free_slots_.back();
    free_slots_.pop_back();
    sequences_[i]->admitted = options_.clock();
    decoder_->ResetSlot(sequences_[i]->slot);
  }
  std::lock_guard lock(mutex_);
  UpdateStats();
}

void Engine::Release(Sequence* sequence) {
  sequence->done = true;
  if (sequence->slot == Sequence::kNoSlot) return;
  CHECK(std::find(free_slots_.begin(), free_slots_.end(), sequence->slot) ==
        free_slots_.end())
      << "slot " << sequence->slot << " had two owners";
  free_slots_.push_back(std::exchange(sequence->slot, Sequence::kNoSlot));
}

void Engine::RunDecode(const std::vector<int>& indices) {
  if (indices.empty()) return;
  std::vector<Decoder::StepInput> inputs;
  for (int i : indices) {
    const Sequence& s = *sequences_[i];
    inputs.push_back(
        {s.slot, s.last_token, &s.request.sampling, s.output_tokens});
  }
  std::vector<int32_t> next(indices.size());
  decoder_->Step(inputs, absl::MakeSpan(next));
  for (size_t i = 0; i < indices.size(); ++i) {
    Emit(sequences_[indices[i]].get(), next[i]);
  }
}

void Engine::RunPrefill(const PrefillChunk& chunk) {
  Sequence* s = sequences_[chunk.sequence].get();
  const auto tokens = absl::MakeConstSpan(s->request.prompt)
                          .subspan(chunk.begin, chunk.end - chunk.begin);
  const bool last = chunk.end == static_cast<int64_t>(s->request.prompt.size());
  const int32_t token =
      decoder_->Prefill(s->slot, tokens, last ? &s->request.sampling : nullptr);
  s->prompt_fed = chunk.end;
  if (last) Emit(s, token);
}

void Engine::Emit(Sequence* sequence, int32_t token) {
  Sequence& s = *sequence;
  Event event;
  event.stream = s.id;
  if (token == kNoToken) {
    End(&s, absl::InternalError("the model's logits are not numbers"),
        FinishReason::kStop, &event);
  } else if (token == eos_id_ && !s.request.ignore_eos) {
    End(&s, absl::OkStatus(), FinishReason::kStop, &event);
  } else {
    if (s.output_tokens++ == 0) s.first_token = options_.clock();
    event.token = s.last_token = token;
    event.text = s.text.Append(TokenText(token));
    if (s.text.stopped()) {
      End(&s, absl::OkStatus(), FinishReason::kStop, &event);
    } else if (s.output_tokens == s.request.max_new_tokens) {
      End(&s, absl::OkStatus(), FinishReason::kLength, &event);
    }
  }
  events_.push_back(std::move(event));
}

void Engine::End(Sequence* sequence, absl::Status status, FinishReason reason,
                 Event* event) {
  Sequence& s = *sequence;
  const absl::Time now = options_.clock();
  event->text += s.text.Flush();
  event->finish = Finish{
      .status = std::move(status),
      .reason = reason,
      .matched_stop = s.text.matched_stop(),
      .prompt_tokens = static_cast<int64_t>(s.request.prompt.size()),
      .output_tokens = s.output_tokens,
      .queued = (s.slot == Sequence::kNoSlot ? now : s.admitted) - s.arrival,
      .time_to_first_token = s.output_tokens > 0 ? s.first_token - s.arrival
                                                 : absl::ZeroDuration(),
      .total = now - s.arrival};
  Release(&s);
}

void Engine::Publish() {
  std::vector<std::function<void()>> readers;
  {
    std::lock_guard lock(mutex_);
    for (Event& event : events_) {
      const auto stream = streams_.find(event.stream);
      if (stream == streams_.end()) continue;  // cancelled during the step
      Output& output = stream->second.output;
      if (event.token) output.tokens.push_back(*event.token);
      output.text += event.text;
      output.finish = std::move(event.finish);
      readers.push_back(stream->second.on_output);
    }
    std::erase_if(sequences_, [](const auto& s) { return s->done; });
    UpdateStats();
  }
  events_.clear();
  for (const auto& on_output : readers) on_output();
}

std::string Engine::TokenText(int32_t token) const {
  // A model may have more rows than its tokenizer has tokens.
  const bool known = tokenizer_ != nullptr && token < tokenizer_->vocab_size();
  return known ? tokenizer_->TokenBytes(token) : "";
}

}  // namespace gla::inference
