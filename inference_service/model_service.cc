#include "inference_service/model_service.h"

#include <memory>

#include "absl/status/status.h"
#include "glog/logging.h"
#include "proto/grpc_status.h"

namespace gla::inference {
namespace {

void ToProto(ServedModel& model, v1::Model* proto) {
  const EngineStats stats = model.engine().stats();
  proto->set_name(model.name());
  proto->set_version(model.version());
  proto->set_checkpoint(model.checkpoint());
  proto->set_parameters(model.num_parameters());
  proto->set_vocab_size(model.config().vocab_size);
  proto->set_state_bytes_per_sequence(model.engine().bytes_per_slot());
  proto->set_state_slots(stats.slots);
  proto->set_state_slots_free(stats.slots_free);
  proto->set_queued_requests(stats.queued);
}

}  // namespace

grpc::Status ModelService::ListModels(grpc::ServerContext* /*context*/,
                                      const v1::ListModelsRequest* /*request*/,
                                      v1::ListModelsResponse* response) {
  for (const auto& model : models_->List()) {
    ToProto(*model, response->add_models());
  }
  return grpc::Status::OK;
}

grpc::Status ModelService::LoadModel(grpc::ServerContext* /*context*/,
                                     const v1::LoadModelRequest* request,
                                     v1::Model* response) {
  if (request->checkpoint().empty()) {
    return ToGrpcStatus(absl::InvalidArgumentError("checkpoint: empty"));
  }
  const absl::StatusOr<std::shared_ptr<ServedModel>> model =
      models_->Load(request->name(), request->checkpoint());
  if (!model.ok()) return ToGrpcStatus(model.status());
  on_loaded_();
  LOG(INFO) << (*model)->name() << " is now " << request->checkpoint();
  ToProto(**model, response);
  return grpc::Status::OK;
}

}  // namespace gla::inference
