#include "inference_service/generate_service.h"

#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <utility>

#include "absl/time/time.h"
#include "inference_service/generate_request.h"
#include "kernels/base/status_macros.h"
#include "proto/grpc_status.h"

namespace gla::inference {
namespace {

uint64_t FreshSeed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

void ToProto(absl::Duration duration, google::protobuf::Duration* proto) {
  const int64_t seconds =
      absl::IDivDuration(duration, absl::Seconds(1), &duration);
  proto->set_seconds(seconds);
  proto->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

void ToProto(const Finish& finish, v1::Finished* proto) {
  proto->set_reason(finish.reason == FinishReason::kStop
                        ? v1::Finished::STOP
                        : v1::Finished::LENGTH);
  proto->set_matched_stop(finish.matched_stop);
  proto->set_prompt_tokens(finish.prompt_tokens);
  proto->set_output_tokens(finish.output_tokens);
  ToProto(finish.queued, proto->mutable_queued());
  ToProto(finish.time_to_first_token, proto->mutable_time_to_first_token());
  ToProto(finish.total, proto->mutable_total());
}

void ToProto(Output output, v1::Delta* proto) {
  proto->set_offset(output.offset);
  proto->set_text(std::move(output.text));
  proto->mutable_token_ids()->Assign(output.tokens.begin(),
                                     output.tokens.end());
}

// One stream to a client. Lives until both gRPC and the engine have let go: it
// holds itself until OnDone(), and the engine's callback holds it too. Locks
// its mutex before the engine's.
class GenerateCall : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                     public std::enable_shared_from_this<GenerateCall> {
 public:
  // Accepts the request and announces it, or finishes with an error.
  void Start(const ModelStore& models, absl::Time deadline,
             const v1::GenerateRequest& request) {
    std::lock_guard lock(mutex_);
    self_ = shared_from_this();
    const absl::Status status = Submit(models, deadline, request);
    if (!status.ok()) return Close(status);
    Write();
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) cancelled_ = true;
    Proceed();
  }

  // The client cancelled, went away, or its deadline passed.
  void OnCancel() override {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    if (model_ != nullptr) model_->engine().Cancel(stream_);
    Proceed();
  }

  void OnDone() override { const auto last = std::move(self_); }

 private:
  absl::Status Submit(const ModelStore& models, absl::Time deadline,
                      const v1::GenerateRequest& proto) {
    ASSIGN_OR_RETURN(std::shared_ptr<ServedModel> model,
                     models.Find(proto.model()));
    ASSIGN_OR_RETURN(
        GenerationRequest request,
        ParseGenerateRequest(proto, model->tokenizer(),
                             model->config().vocab_size, FreshSeed()));
    request.deadline = deadline;
    v1::Started& started = *response_.mutable_started();
    started.set_model(model->name());
    started.set_seed(request.sampling.seed);
    started.set_prompt_tokens(static_cast<int64_t>(request.prompt.size()));
    ASSIGN_OR_RETURN(
        stream_, model->engine().Submit(std::move(request),
                                        [self = self_] { self->OnOutput(); }));
    model_ = std::move(model);
    return absl::OkStatus();
  }

  // On the engine's thread.
  void OnOutput() {
    std::lock_guard lock(mutex_);
    Proceed();
  }

  // Does the next thing, unless a write is in flight: its end comes back here.
  void Proceed() {
    if (writing_ || closed_) return;
    if (cancelled_) {
      model_->engine().Cancel(stream_);
      return Close(absl::CancelledError("the client went away"));
    }
    if (!finish_) TakeOutput();
    if (writing_ || !finish_) return;
    if (!finish_->status.ok()) return Close(finish_->status);
    if (finished_sent_) return Close(absl::OkStatus());
    ToProto(*finish_, response_.mutable_finished());
    finished_sent_ = true;
    Write();
  }

  // Writes the tokens and text that have come; notes the end.
  void TakeOutput() {
    Output output = model_->engine().Take(stream_);
    finish_ = std::move(output.finish);
    if (output.tokens.empty() && output.text.empty()) return;
    ToProto(std::move(output), response_.mutable_delta());
    Write();
  }

  void Write() {
    writing_ = true;
    StartWrite(&response_);
  }

  void Close(const absl::Status& status) {
    closed_ = true;
    Finish(ToGrpcStatus(status));
  }

  std::shared_ptr<GenerateCall> self_;

  // Guarded by mutex_.
  std::mutex mutex_;
  std::shared_ptr<ServedModel> model_;  // nullptr: not accepted
  Engine::StreamId stream_ = 0;
  v1::GenerateResponse response_;  // in flight while writing_
  bool writing_ = false;
  bool cancelled_ = false;
  bool closed_ = false;
  bool finished_sent_ = false;
  std::optional<inference::Finish> finish_;
};

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* GenerateService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  const auto call = std::make_shared<GenerateCall>();
  call->Start(*models_, absl::FromChrono(context->deadline()), *request);
  return call.get();
}

}  // namespace gla::inference
