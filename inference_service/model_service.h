// gRPC adapter of what is served.
#ifndef GLA_INFERENCE_SERVICE_MODEL_SERVICE_H_
#define GLA_INFERENCE_SERVICE_MODEL_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <utility>

#include "gla/inference/v1/inference.grpc.pb.h"
#include "inference_service/model_store.h"

namespace gla::inference {

// A synchronous service: a load reads files for as long as it takes, on a
// thread of gRPC's pool, and holds up no stream.
class ModelService : public v1::ModelService::Service {
 public:
  // `models` must outlive the server. `on_loaded` is called after a load,
  // before its answer.
  ModelService(ModelStore* models, std::function<void()> on_loaded)
      : models_(models), on_loaded_(std::move(on_loaded)) {}

  grpc::Status ListModels(grpc::ServerContext* context,
                          const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override;
  grpc::Status LoadModel(grpc::ServerContext* context,
                         const v1::LoadModelRequest* request,
                         v1::Model* response) override;

 private:
  ModelStore* const models_;
  const std::function<void()> on_loaded_;
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_MODEL_SERVICE_H_
