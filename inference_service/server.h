// The inference server of a process: models, services, health, orderly end.
// (docs/serving.md)
#ifndef GLA_INFERENCE_SERVICE_SERVER_H_
#define GLA_INFERENCE_SERVICE_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "inference_service/model_store.h"

namespace gla::inference {

// Serves GenerationService, ModelService, grpc.health.v1.Health ("", the two
// services and each loaded "models/{id}"; GenerationService is SERVING once a
// model is) and reflection. Thread-safe.
class Server {
 public:
  // Listens on "host:port"; port 0: a free one. `models` must outlive this and
  // may hold models already. UNAVAILABLE: the address is in use or not ours.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const std::string& address, ModelStore* models);
  ~Server();

  int port() const { return port_; }

  // NOT_SERVING at once, no new requests; those accepted have `grace` to
  // finish, and end with UNAVAILABLE after it. Once.
  void Shutdown(absl::Duration grace);

 private:
  struct Grpc;  // keeps gRPC's headers out of this one
  explicit Server(ModelStore* models);
  void UpdateHealth();

  ModelStore* const models_;
  std::unique_ptr<Grpc> grpc_;
  int port_ = 0;
};

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_SERVER_H_
