// absl::Status <-> grpc::Status: the one place where errors cross the wire.
#ifndef GLA_PROTO_GRPC_STATUS_H_
#define GLA_PROTO_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace gla {

// The same code and message. The two enums have the same numbers.
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace gla

#endif  // GLA_PROTO_GRPC_STATUS_H_
