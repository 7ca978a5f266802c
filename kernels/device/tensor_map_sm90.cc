#include "kernels/device/tensor_map_sm90.h"

namespace gla {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's encoder, found once through the runtime, so that nothing links
// the driver itself.
cudaError_t FindEncoder(Encode* encode) {
  static void* function = nullptr;
  static const cudaError_t error = [] {
    cudaDriverEntryPointQueryResult result;
    constexpr unsigned kCuda12 = 12000;
    return cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                            kCuda12, cudaEnableDefault,
                                            &result);
  }();
  *encode = reinterpret_cast<Encode>(function);
  if (error != cudaSuccess) return error;
  return function != nullptr ? cudaSuccess : cudaErrorNotSupported;
}

CUtensorMapDataType MapType(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::kBFloat16:
      break;
  }
  return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

// Binds the runtime's context to the calling thread, as the runtime's own calls
// do when they need one. The driver's do not.
cudaError_t BindContext() {
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  return cudaSetDevice(device);
}

}  // namespace

cudaError_t MakeTensorMap(const TensorMapArgs& args, CUtensorMap* map) {
  Encode encode;
  if (cudaError_t error = FindEncoder(&encode)) return error;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(args.columns),
                               static_cast<cuuint64_t>(args.rows)};
  const cuuint64_t row_bytes[1] = {
      static_cast<cuuint64_t>(args.columns * DTypeBytes(args.dtype))};
  const cuuint32_t box[2] = {args.box_columns, args.box_rows};
  const cuuint32_t strides[2] = {1, 1};
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE;
  if (args.swizzled) {
    swizzle = args.box_columns * DTypeBytes(args.dtype) == 64
                  ? CU_TENSOR_MAP_SWIZZLE_64B
                  : CU_TENSOR_MAP_SWIZZLE_128B;
  }
  const auto make = [&] {
    return encode(map, MapType(args.dtype), 2, const_cast<void*>(args.data),
                  sizes, row_bytes, box, strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = make();
  if (result == CUDA_ERROR_INVALID_CONTEXT) {
    if (cudaError_t error = BindContext()) return error;
    result = make();
  }
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace gla
