// The trainer service as a whole: storage, coordinator, and the two ports.
#ifndef GLA_TRAINER_SERVICE_SERVER_H_
#define GLA_TRAINER_SERVICE_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer_service/launcher.h"

namespace gla::trainer {

struct ServerOptions {
  std::string storage;  // folder, created if needed; one service at a time
  std::string listen = "127.0.0.1:0";  // public address; port 0: any free one
  Launcher* launcher = nullptr;        // outlives the server
};

// Serves TrainingJobService, health and reflection on the public port, and
// WorkerService on a loopback port of its own. Thread-safe.
class Server {
 public:
  // Everything is up on return; unfinished jobs are being taken up again.
  //   FAILED_PRECONDITION  another service uses the storage folder
  //   PERMISSION_DENIED... the folder cannot be made or written (names it)
  //   UNAVAILABLE          the address cannot be bound (names it)
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const ServerOptions& options);
  // As Stop, if it was not called.
  virtual ~Server() = default;

  virtual int port() const = 0;  // public

  // New calls are refused, streams end, the worker saves and stops: its job
  // goes on at the next start. Returns when all are gone.
  virtual void Stop() = 0;
};

}  // namespace gla::trainer

#endif  // GLA_TRAINER_SERVICE_SERVER_H_
