#include "trainer_service/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "kernels/base/status_macros.h"
#include "trainer_service/coordinator.h"
#include "trainer_service/job_store.h"
#include "trainer_service/storage_lock.h"
#include "trainer_service/train_service.h"
#include "trainer_service/worker_service.h"

namespace gla::trainer {
namespace {

class TrainerServer : public Server {
 public:
  TrainerServer(const ServerOptions& options, std::unique_ptr<StorageLock> lock,
                std::unique_ptr<JobStore> store)
      : lock_(std::move(lock)),
        store_(std::move(store)),
        coordinator_({.storage = options.storage,
                      .store = store_.get(),
                      .launcher = options.launcher}),
        train_service_(&coordinator_, store_.get()),
        worker_service_(&coordinator_) {}
  ~TrainerServer() override { Stop(); }

  absl::Status StartServing(const std::string& listen) {
    int worker_port = 0;
    ASSIGN_OR_RETURN(worker_server_,
                     Serve("127.0.0.1:0", &worker_service_, &worker_port));
    // Clients see no state that an earlier service left.
    RETURN_IF_ERROR(
        coordinator_.Recover(absl::StrCat("127.0.0.1:", worker_port)));
    ASSIGN_OR_RETURN(public_server_, Serve(listen, &train_service_, &port_));
    public_server_->GetHealthCheckService()->SetServingStatus(
        v1::TrainingJobService::service_full_name(), true);
    coordinator_.StartThread();
    started_ = true;
    return absl::OkStatus();
  }

  int port() const override { return port_; }

  void Stop() override {
    if (!started_) return;
    started_ = false;
    public_server_->GetHealthCheckService()->SetServingStatus(false);
    coordinator_.Shutdown();
    // Streams end by themselves now; the deadline is for clients that do not
    // read.
    const auto deadline =
        std::chrono::system_clock::now() + std::chrono::seconds(1);
    public_server_->Shutdown(deadline);
    worker_server_->Shutdown(deadline);
  }

 private:
  absl::StatusOr<std::unique_ptr<grpc::Server>> Serve(
      const std::string& address, grpc::Service* service, int* port) {
    grpc::ServerBuilder builder;
    // Else a second service would share the port instead of being refused.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    // Else a worker's keepalive would be taken for abuse. (worker.cc)
    builder.AddChannelArgument(
        GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 20'000);
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), port);
    builder.RegisterService(service);
    std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
    if (server == nullptr || *port == 0) {
      return absl::UnavailableError(absl::StrCat(
          "cannot listen on ", address,
          ": the port is in use, or the address is not of this machine"));
    }
    return server;
  }

  const std::unique_ptr<StorageLock> lock_;
  const std::unique_ptr<JobStore> store_;
  Coordinator coordinator_;
  TrainService train_service_;
  WorkerService worker_service_;
  int port_ = 0;
  bool started_ = false;
  std::unique_ptr<grpc::Server> worker_server_, public_server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const ServerOptions& options) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  ASSIGN_OR_RETURN(std::unique_ptr<StorageLock> lock,
                   StorageLock::Acquire(options.storage));
  ASSIGN_OR_RETURN(std::unique_ptr<JobStore> store,
                   JobStore::Open(options.storage + "/jobs.db"));
  auto server = std::make_unique<TrainerServer>(options, std::move(lock),
                                                std::move(store));
  RETURN_IF_ERROR(server->StartServing(options.listen));
  return server;
}

}  // namespace gla::trainer
