#include "kernels/c_api/gla_argument_check.h"

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <utility>

namespace gla {
namespace {

constexpr int64_t kMaxHeadSize = 512;
constexpr int64_t kTensorAlignment = 16;   // bytes of a vector access
constexpr int64_t kBufferAlignment = 256;  // bytes

constexpr int kMaxDevices = 64;

thread_local char last_error[512] = "";

static_assert(static_cast<int32_t>(DType::kFloat32) == GLA_FLOAT32);
static_assert(static_cast<int32_t>(DType::kBFloat16) == GLA_BFLOAT16);
static_assert(static_cast<int32_t>(DType::kFloat16) == GLA_FLOAT16);

const char* TypeName(int32_t dtype) {
  switch (dtype) {
    case GLA_FLOAT32:
      return "float32";
    case GLA_BFLOAT16:
      return "bfloat16";
    case GLA_FLOAT16:
      return "float16";
  }
  return nullptr;
}

// What every row address keeps if the first has it, up to kTensorAlignment.
int64_t RowAlignment(int64_t row, int32_t dtype) {
  const int64_t bytes = row * DTypeBytes(ToDType(dtype));
  return std::min(kTensorAlignment, bytes & -bytes);
}

}  // namespace

const char* LastError() { return last_error; }

void ArgumentCheck::Fail(gla_status status, const char* format, ...) {
  if (!ok()) return;
  status_ = status;
  const int used =
      std::snprintf(last_error, sizeof(last_error), "%s: ", function_);
  va_list values;
  va_start(values, format);
  std::vsnprintf(last_error + used, sizeof(last_error) - used, format, values);
  va_end(values);
}

bool ArgumentCheck::NotNull(const char* name, const void* args) {
  if (args == nullptr) Fail(GLA_INVALID_ARGUMENT, "%s is null", name);
  return args != nullptr;
}

void ArgumentCheck::Size(const char* name, int64_t value) {
  if (value >= 1) return;
  Fail(GLA_INVALID_ARGUMENT, "%s is %" PRId64 ", must be at least 1", name,
       value);
}

void ArgumentCheck::Sizes(const gla_shape& shape) {
  Size("B", shape.B);
  Size("T", shape.T);
  Size("H", shape.H);
  Size("K", shape.K);
  Size("V", shape.V);
  Size("N", shape.N);
  for (const auto& [name, value] : {std::pair{"K", shape.K}, {"V", shape.V}}) {
    if (value <= kMaxHeadSize) continue;
    Fail(GLA_UNSUPPORTED, "%s is %" PRId64 ", must be at most %" PRId64, name,
         value, kMaxHeadSize);
  }
}

void ArgumentCheck::Sequences(const gla_shape& shape,
                              const int32_t* cu_seqlens) {
  if (cu_seqlens == nullptr && shape.N != shape.B) {
    Fail(GLA_INVALID_ARGUMENT,
         "N is %" PRId64 ", must be B = %" PRId64 " without cu_seqlens",
         shape.N, shape.B);
  }
  if (cu_seqlens != nullptr && shape.B != 1) {
    Fail(GLA_INVALID_ARGUMENT, "B is %" PRId64 ", must be 1 with cu_seqlens",
         shape.B);
  }
  Indices("cu_seqlens", cu_seqlens);
}

void ArgumentCheck::Type(const char* name, int32_t value,
                         std::initializer_list<DType> allowed) {
  if (TypeName(value) == nullptr) {
    Fail(GLA_INVALID_ARGUMENT, "%s is %d, which is no gla_dtype", name, value);
  } else if (std::find(allowed.begin(), allowed.end(), ToDType(value)) ==
             allowed.end()) {
    Fail(GLA_UNSUPPORTED, "%s %s is not supported", name, TypeName(value));
  }
}

void ArgumentCheck::Type(const char* name, int32_t value) {
  Type(name, value, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
}

void ArgumentCheck::Tensor(const char* name, const void* data, int64_t row,
                           int32_t dtype) {
  if (ok() && NotNull(name, data)) OptionalTensor(name, data, row, dtype);
}

void ArgumentCheck::OptionalTensor(const char* name, const void* data,
                                   int64_t row, int32_t dtype) {
  if (ok()) Aligned(name, data, RowAlignment(row, dtype));
}

void ArgumentCheck::Indices(const char* name, const int32_t* data) {
  Aligned(name, data, sizeof(int32_t));
}

void ArgumentCheck::Buffer(const char* name, const void* data, int64_t bytes,
                           int64_t needed) {
  if (!ok() || needed == 0) return;
  if (!NotNull(name, data)) return;
  if (bytes < needed) {
    Fail(GLA_INVALID_ARGUMENT,
         "%s has %" PRId64 " bytes, must have at least %" PRId64, name, bytes,
         needed);
  }
  Aligned(name, data, kBufferAlignment);
}

void ArgumentCheck::Different(const char* output, const void* a,
                              const char* input, const void* b) {
  if (a == b) Fail(GLA_INVALID_ARGUMENT, "%s must not be %s", output, input);
}

void ArgumentCheck::Aligned(const char* name, const void* data,
                            int64_t alignment) {
  if (reinterpret_cast<uintptr_t>(data) % alignment == 0) return;
  Fail(GLA_INVALID_ARGUMENT,
       "%s is at address %p, must be a multiple of %" PRId64 " bytes", name,
       data, alignment);
}

bool ArgumentCheck::Cuda(cudaError_t error) {
  if (error == cudaSuccess) return true;
  Fail(GLA_CUDA_ERROR, "%s: %s", cudaGetErrorName(error),
       cudaGetErrorString(error));
  return false;
}

void ArgumentCheck::HopperGpu() {
  static std::atomic<bool> is_hopper[kMaxDevices];
  int device = 0;
  if (!ok() || !Cuda(cudaGetDevice(&device))) return;
  if (device < kMaxDevices && is_hopper[device].load()) return;
  int major = 0, minor = 0;
  if (!Cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                   device)) ||
      !Cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor,
                                   device))) {
    return;
  }
  if (major != 9 || minor != 0) {
    Fail(GLA_WRONG_GPU,
         "device %d has compute capability %d.%d, the kernels need 9.0", device,
         major, minor);
  } else if (device < kMaxDevices) {
    is_hopper[device] = true;
  }
}

gla_status ArgumentCheck::Launched(cudaError_t error) {
  Cuda(error);
  return status_;
}

}  // namespace gla
