#include "inference_service/server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "inference_service/generate_service.h"
#include "inference_service/model_service.h"

namespace gla::inference {
namespace {

constexpr int kKeepaliveMillis = 60'000;
constexpr int kKeepaliveTimeoutMillis = 20'000;
constexpr int kFastestClientPingMillis = 30'000;

// How long an aborted stream may take to tell its client.
constexpr absl::Duration kLastWords = absl::Seconds(2);

// gRPC's own log lines; what matters of them is in a status as well.
void LogFromGrpc(gpr_log_func_args* args) {
  VLOG(1) << args->file << ":" << args->line << " " << args->message;
}

// A dead client is noticed by unanswered pings; a port has one server.
void SetChannelArguments(grpc::ServerBuilder* builder) {
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMillis);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                              kKeepaliveTimeoutMillis);
  builder->AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      kFastestClientPingMillis);
}

}  // namespace

struct Server::Grpc {
  Grpc(ModelStore* models, std::function<void()> on_loaded)
      : generate(models), model(models, std::move(on_loaded)) {}

  GenerateService generate;
  ModelService model;
  std::unique_ptr<grpc::Server> server;
};

Server::Server(ModelStore* models)
    : models_(models),
      grpc_(std::make_unique<Grpc>(models, [this] { UpdateHealth(); })) {}

Server::~Server() {
  if (grpc_->server != nullptr) grpc_->server->Shutdown();
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const std::string& address, ModelStore* models) {
  gpr_set_log_function(LogFromGrpc);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<Server> server(new Server(models));
  grpc::ServerBuilder builder;
  SetChannelArguments(&builder);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(),
                           &server->port_);
  builder.RegisterService(&server->grpc_->generate);
  builder.RegisterService(&server->grpc_->model);
  server->grpc_->server = builder.BuildAndStart();
  if (server->grpc_->server == nullptr) {
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", address,
        ": the port is in use or the address is not this machine's"));
  }
  server->UpdateHealth();
  return server;
}

void Server::UpdateHealth() {
  grpc::HealthCheckServiceInterface* health =
      grpc_->server->GetHealthCheckService();
  const auto models = models_->List();
  health->SetServingStatus(v1::ModelService::service_full_name(), true);
  health->SetServingStatus(v1::GenerationService::service_full_name(),
                           !models.empty());
  for (const auto& model : models) {
    health->SetServingStatus(model->name(), true);
  }
}

void Server::Shutdown(absl::Duration grace) {
  const absl::Time deadline = absl::Now() + grace;
  // From here on the health service answers NOT_SERVING whatever is set.
  grpc_->server->GetHealthCheckService()->Shutdown();
  models_->StopAccepting();
  if (!models_->AwaitIdle(deadline)) {
    models_->Abort(absl::UnavailableError("the server is shutting down"));
  }
  // Returns as soon as the last stream has been written and closed.
  grpc_->server->Shutdown(
      absl::ToChronoTime(std::max(deadline, absl::Now() + kLastWords)));
  grpc_->server->Wait();
}

}  // namespace gla::inference
