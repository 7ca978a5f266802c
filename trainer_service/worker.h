// The worker process: runs one attempt of a job and reports to the service.
#ifndef GLA_TRAINER_SERVICE_WORKER_H_
#define GLA_TRAINER_SERVICE_WORKER_H_

#include <cstdint>
#include <string>

namespace gla::trainer {

struct WorkerOptions {
  std::string service_address;  // of WorkerService
  std::string job;              // "jobs/{job_id}"
  int32_t attempt = 0;
  std::string secret;
};

// Attaches, trains until the job is done, fails or is to stop, and says how it
// ended. A stop is the service's Stop, SIGTERM or SIGINT (handlers are
// installed), or the loss of the service: in every phase the worker finishes
// the step, saves and returns. Returns the process's exit code: 0 when the
// attempt ended as it should, 1 when the service refused it or is gone.
int RunWorker(const WorkerOptions& options);

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_WORKER_H_
