// gRPC adapter of generation: checks a request, hands it to its model's engine
// and writes what comes back.
#ifndef GLA_INFERENCE_SERVICE_GENERATE_SERVICE_H_
#define GLA_INFERENCE_SERVICE_GENERATE_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include "gla/inference/v1/inference.grpc.pb.h"
#include "inference_service/model_store.h"

namespace gla::inference {

// Keeps no state of its own. A stream has one write in flight: tokens that come
// meanwhile wait in the engine's bounded queue and go out together. A client
// that cancels, disconnects or lets its deadline pass frees its slot within a
// step.
class GenerateService : public v1::GenerationService::CallbackService {
 public:
  // `models` must outlive the server.
  explicit GenerateService(const ModelStore* models) : models_(models) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context,
      const v1::GenerateRequest* request) override;

 private:
  const ModelStore* const models_;
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_GENERATE_SERVICE_H_
