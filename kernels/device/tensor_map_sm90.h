// Host code: descriptors of two-dimensional tensors for Hopper's tensor copies.
#ifndef GLA_KERNELS_DEVICE_TENSOR_MAP_SM90_H_
#define GLA_KERNELS_DEVICE_TENSOR_MAP_SM90_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/dtype.h"

namespace gla {

// A row-major [rows, columns] tensor and the box that one copy moves. `data`
// and the bytes of a row are multiples of 16; `swizzled` boxes are 128 or 64
// bytes wide and land as slabs or half slabs (wgmma_sm90.cuh).
struct TensorMapArgs {
  const void* data;
  DType dtype;
  int64_t rows, columns;
  uint32_t box_rows, box_columns;
  bool swizzled;
};

// Returns cudaErrorInvalidValue when the driver refuses the arguments.
cudaError_t MakeTensorMap(const TensorMapArgs& args, CUtensorMap* map);

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_TENSOR_MAP_SM90_H_
