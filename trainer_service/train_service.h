// gRPC adapter of TrainingJobService.
#ifndef GLA_TRAINER_SERVICE_TRAIN_SERVICE_H_
#define GLA_TRAINER_SERVICE_TRAIN_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <string>

#include "gla/trainer/v1/trainer.grpc.pb.h"
#include "trainer_service/coordinator.h"
#include "trainer_service/job_store.h"

namespace gla::trainer {

// Validates each request once, then asks the coordinator. Stateless,
// thread-safe; a watch or a followed log takes a thread while it is open.
// Contracts: trainer.proto.
class TrainService final : public v1::TrainingJobService::Service {
 public:
  // Both outlive this.
  TrainService(Coordinator* coordinator, JobStore* store)
      : coordinator_(coordinator), store_(store) {}

  grpc::Status CreateJob(grpc::ServerContext* context,
                         const v1::CreateJobRequest* request,
                         v1::Job* job) override;
  grpc::Status GetJob(grpc::ServerContext* context,
                      const v1::GetJobRequest* request, v1::Job* job) override;
  grpc::Status ListJobs(grpc::ServerContext* context,
                        const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override;
  grpc::Status CancelJob(grpc::ServerContext* context,
                         const v1::CancelJobRequest* request,
                         v1::Job* job) override;
  grpc::Status WatchJob(grpc::ServerContext* context,
                        const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::JobEvent>* writer) override;
  grpc::Status StreamLogs(grpc::ServerContext* context,
                          const v1::StreamLogsRequest* request,
                          grpc::ServerWriter<v1::LogBatch>* writer) override;
  grpc::Status ListCheckpoints(grpc::ServerContext* context,
                               const v1::ListCheckpointsRequest* request,
                               v1::ListCheckpointsResponse* response) override;

 private:
  absl::StatusOr<v1::Job> Create(const v1::CreateJobRequest& request);
  absl::Status List(const v1::ListJobsRequest& request,
                    v1::ListJobsResponse* response);
  absl::Status Watch(grpc::ServerContext* context,
                     const v1::WatchJobRequest& request,
                     grpc::ServerWriter<v1::JobEvent>* writer);
  absl::Status Stream(grpc::ServerContext* context,
                      const v1::StreamLogsRequest& request,
                      grpc::ServerWriter<v1::LogBatch>* writer);
  absl::Status Checkpoints(const v1::ListCheckpointsRequest& request,
                           v1::ListCheckpointsResponse* response);

  Coordinator* const coordinator_;
  JobStore* const store_;
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_TRAIN_SERVICE_H_
