// Early return on error for functions that return absl::Status or StatusOr.
// (Abseil's own macros came after the release that Debian 12 ships.)
#ifndef GLA_KERNELS_BASE_STATUS_MACROS_H_
#define GLA_KERNELS_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// RETURN_IF_ERROR(expr): returns expr's status from this function unless OK.
#define RETURN_IF_ERROR(expr)                                     \
  do {                                                            \
    if (::absl::Status gla_status_ = (expr); !gla_status_.ok()) { \
      return gla_status_;                                         \
    }                                                             \
  } while (false)

// ASSIGN_OR_RETURN(auto x, expr): moves expr's value into x, or returns.
#define ASSIGN_OR_RETURN(lhs, expr) \
  GLA_ASSIGN_OR_RETURN_(GLA_CONCAT_(gla_status_or_, __LINE__), lhs, expr)
#define GLA_ASSIGN_OR_RETURN_(tmp, lhs, expr) \
  auto tmp = (expr);                          \
  if (!tmp.ok()) return tmp.status();         \
  lhs = *std::move(tmp)
#define GLA_CONCAT_(a, b) GLA_CONCAT_INNER_(a, b)
#define GLA_CONCAT_INNER_(a, b) a##b

#endif  // GLA_KERNELS_BASE_STATUS_MACROS_H_
