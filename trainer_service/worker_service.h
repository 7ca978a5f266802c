// gRPC adapter of WorkerService: the stream to an attached worker.
#ifndef GLA_TRAINER_SERVICE_WORKER_SERVICE_H_
#define GLA_TRAINER_SERVICE_WORKER_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include "gla/trainer/v1/worker.grpc.pb.h"
#include "trainer_service/coordinator.h"

namespace gla::trainer {

// Hands each message to the coordinator, in order; what it refuses ends the
// stream with its status.
class WorkerService final : public v1::WorkerService::Service {
 public:
  explicit WorkerService(Coordinator* coordinator)
      : coordinator_(coordinator) {}

  grpc::Status Attach(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>*
          stream) override;

 private:
  Coordinator* const coordinator_;
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_WORKER_SERVICE_H_
