// The worker process that the trainer service starts for each attempt of a job:
//
//   GLA_WORKER_SECRET=... gla_trainer_worker --job=jobs/ID --attempt=N
//       --service=ADDRESS
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "glog/logging.h"
#include "trainer_service/local_launcher.h"
#include "trainer_service/worker.h"

ABSL_FLAG(std::string, job, "", "job to work on, jobs/{job_id}");
ABSL_FLAG(int32_t, attempt, 0, "number of this attempt");
ABSL_FLAG(std::string, service, "", "address of the WorkerService");

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  FLAGS_logtostderr = true;
  google::InitGoogleLogging(argv[0]);
  const char* secret = getenv(gla::trainer::kSecretVariable);
  return gla::trainer::RunWorker(
      {.service_address = absl::GetFlag(FLAGS_service),
       .job = absl::GetFlag(FLAGS_job),
       .attempt = absl::GetFlag(FLAGS_attempt),
       .secret = secret == nullptr ? "" : secret});
}
