// Internal to gla_kernels: the checks that every function of gla_kernels.h
// makes, and the text of its failures.
#ifndef GLA_KERNELS_C_API_GLA_ARGUMENT_CHECK_H_
#define GLA_KERNELS_C_API_GLA_ARGUMENT_CHECK_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>

#include "kernels/base/dtype.h"
#include "kernels/c_api/gla_kernels.h"

namespace gla {

// Of this thread; what gla_last_error() returns.
const char* LastError();

// Collects the first failure among the checks of one call: later checks do
// nothing. Messages start with the name of the C function.
class ArgumentCheck {
 public:
  explicit ArgumentCheck(const char* function) : function_(function) {}

  gla_status status() const { return status_; }
  bool ok() const { return status_ == GLA_OK; }

  // False, and a failure, if `args` is null.
  bool NotNull(const char* name, const void* args);

  // The sizes of a shape, and its number of sequences.
  void Sizes(const gla_shape& shape);
  void Sequences(const gla_shape& shape, const int32_t* cu_seqlens);
  void Size(const char* name, int64_t value);

  // That `value` is one of `allowed`, or any gla_dtype.
  void Type(const char* name, int32_t value,
            std::initializer_list<DType> allowed);
  void Type(const char* name, int32_t value);

  // A tensor whose rows have `row` elements of type `dtype`.
  void Tensor(const char* name, const void* data, int64_t row, int32_t dtype);
  void OptionalTensor(const char* name, const void* data, int64_t row,
                      int32_t dtype);

  // [N] or [N + 1] int32; may be null.
  void Indices(const char* name, const int32_t* data);

  // `bytes` of memory, of which the call uses `needed`.
  void Buffer(const char* name, const void* data, int64_t bytes,
              int64_t needed);

  // Fails where an output may not be an input and is.
  void Different(const char* output, const void* a, const char* input,
                 const void* b);

  // That kernels can run on the current device; asked once per device.
  void HopperGpu();

  // The end of every call: what the kernels' launches returned.
  gla_status Launched(cudaError_t error);

 private:
  void Aligned(const char* name, const void* data, int64_t alignment);
  bool Cuda(cudaError_t error);
  void Fail(gla_status status, const char* format, ...)
      __attribute__((format(printf, 3, 4)));

  const char* const function_;
  gla_status status_ = GLA_OK;
};

// The values of gla_dtype are those of DType.
inline DType ToDType(int32_t dtype) { return static_cast<DType>(dtype); }

}  // namespace gla

#endif  // GLA_KERNELS_C_API_GLA_ARGUMENT_CHECK_H_
