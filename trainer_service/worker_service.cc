#include "trainer_service/worker_service.h"

#include "absl/status/status.h"
#include "glog/logging.h"
#include "proto/grpc_status.h"

namespace gla::trainer {
namespace {

using Stream =
    grpc::ServerReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>;

class StreamLink : public WorkerLink {
 public:
  explicit StreamLink(Stream* stream) : stream_(stream) {}
  // The coordinator sends one message at a time. A broken stream shows when it
  // is read.
  void Send(const v1::CoordinatorMessage& message) override {
    stream_->Write(message);
  }

 private:
  Stream* const stream_;
};

}  // namespace

grpc::Status WorkerService::Attach(grpc::ServerContext*, Stream* stream) {
  StreamLink link(stream);
  v1::WorkerMessage message;
  absl::Status status;
  while (status.ok() && stream->Read(&message)) {
    status = coordinator_->Receive(message, &link);
  }
  coordinator_->Detach(&link);
  LOG_IF(WARNING, !status.ok()) << "refused a worker: " << status;
  return ToGrpcStatus(status);
}

}  // namespace gla::trainer
