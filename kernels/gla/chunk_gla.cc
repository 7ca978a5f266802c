#include "kernels/gla/chunk_gla.h"

#include <algorithm>
#include <type_traits>

#include "glog/logging.h"
#include "kernels/gla/chunk_gla_cpu.h"
#ifdef GLA_CUDA
#include "kernels/base/cuda_check.h"
#include "kernels/gla/chunk_gla_cuda.h"
#endif

namespace gla {
namespace {

using Shape = std::array<int64_t, 4>;
using CuSeqlens = absl::Span<const int32_t>;

Shape StatesShape(const Shape& k_shape, const Shape& v_shape,
                  CuSeqlens cu_seqlens) {
  const auto [B, T, H, K] = k_shape;
  const int64_t N = cu_seqlens.empty() ? B : cu_seqlens.size() - 1;
  return {N, H, K, v_shape[3]};
}

// What both passes are given.
template <typename Args>
void CheckInputs(const Args& args) {
  CHECK(!args.k.empty() && !args.v.empty());
  const auto [B, T, H, K] = args.k.shape();
  CheckShape("q", args.q, {B, T, H, K});
  CheckShape("v", args.v, {B, T, H, args.v.dim(3)});
  CheckShape("g", args.g, {B, T, H, K});
  if (!args.initial_state.empty()) {
    CheckShape("initial_state", args.initial_state,
               StatesShape(args.k.shape(), args.v.shape(), args.cu_seqlens));
  }
}

template <typename T, typename Gate>
void CheckArgs(const ChunkGlaFwdArgsOf<T, Gate>& args) {
  CheckInputs(args);
  const Shape keys = args.k.shape(), values = args.v.shape();
  CheckShape("o", args.o, values);
  if (!args.final_state.empty()) {
    CheckShape("final_state", args.final_state,
               StatesShape(keys, values, args.cu_seqlens));
  }
  if (!args.saved.empty()) {
    CheckShape("saved", args.saved,
               {ChunkGlaSavedFloats<T, Gate>(keys, values, args.cu_seqlens)});
  }
}

template <typename T, typename Gate>
void CheckArgs(const ChunkGlaBwdArgsOf<T, Gate>& args) {
  CheckInputs(args);
  const Shape keys = args.k.shape(), values = args.v.shape();
  const Shape states = StatesShape(keys, values, args.cu_seqlens);
  CheckShape("saved", args.saved,
             {ChunkGlaSavedFloats<T, Gate>(keys, values, args.cu_seqlens)});
  CheckShape("d_o", args.d_o, values);
  CheckShape("dq", args.dq, keys);
  CheckShape("dk", args.dk, keys);
  CheckShape("dv", args.dv, values);
  if (!args.dg.empty()) CheckShape("dg", args.dg, keys);
  if (!args.d_final_state.empty()) {
    CheckShape("d_final_state", args.d_final_state, states);
  }
  if (!args.d_initial_state.empty()) {
    CheckShape("d_initial_state", args.d_initial_state, states);
  }
}

template <typename T>
constexpr bool kIsCpuType = std::is_same_v<T, float>;

template <typename T>
void CheckDevice(const ExecutionContext& ctx, const char* op) {
  CHECK((ctx.device == Device::kCpu) == kIsCpuType<T>)
      << op << ": float is for the CPU, 16-bit floating point for CUDA";
}

#ifdef GLA_CUDA
constexpr int64_t kMaxHeadSize = 512;

template <typename T, typename Gate>
ChunkGlaShape CudaShape(const Shape& keys, const Shape& values,
                        CuSeqlens cu_seqlens) {
  const auto [B, T_, H, K] = keys;
  const int64_t V = values[3];
  CHECK(std::min(K, V) >= 1 && std::max(K, V) <= kMaxHeadSize)
      << "chunk_gla on CUDA: head sizes " << K << " and " << V
      << " outside of [1, " << kMaxHeadSize << "]";
  CHECK(cu_seqlens.empty() || B == 1) << "cu_seqlens with " << B << " rows";
  return {.B = B,
          .T = T_,
          .H = H,
          .K = K,
          .V = V,
          .N = StatesShape(keys, values, cu_seqlens)[0],
          .dtype = DTypeOf<T>(),
          .gate_dtype = DTypeOf<Gate>()};
}

const int32_t* Data(CuSeqlens cu_seqlens) {
  return cu_seqlens.empty() ? nullptr : cu_seqlens.data();
}

template <typename T, typename Gate>
void FwdCuda(const ExecutionContext& ctx,
             const ChunkGlaFwdArgsOf<T, Gate>& args) {
  ChunkGlaFwdCudaArgs cuda = {};
  cuda.shape =
      CudaShape<T, Gate>(args.k.shape(), args.v.shape(), args.cu_seqlens);
  cuda.scale = args.scale;
  cuda.q = args.q.data();
  cuda.k = args.k.data();
  cuda.v = args.v.data();
  cuda.g = args.g.data();
  cuda.initial_state = args.initial_state.data();
  cuda.cu_seqlens = Data(args.cu_seqlens);
  cuda.o = args.o.data();
  cuda.final_state = args.final_state.data();
  CHECK(cuda.final_state == nullptr || cuda.final_state != cuda.initial_state)
      << "final_state is initial_state";
  cuda.saved = args.saved.data();
  cuda.workspace = DeviceWorkspace(ctx, "ChunkGlaFwd",
                                   ChunkGlaFwdWorkspaceBytes(cuda.shape));
  CUDA_CHECK(ChunkGlaFwdCuda(cuda, static_cast<cudaStream_t>(ctx.stream)));
}

template <typename T, typename Gate>
void BwdCuda(const ExecutionContext& ctx,
             const ChunkGlaBwdArgsOf<T, Gate>& args) {
  CHECK(!args.dg.empty()) << "ChunkGlaBwd on CUDA always computes dg";
  ChunkGlaBwdCudaArgs cuda = {};
  cuda.shape =
      CudaShape<T, Gate>(args.k.shape(), args.v.shape(), args.cu_seqlens);
  cuda.scale = args.scale;
  cuda.q = args.q.data();
  cuda.k = args.k.data();
  cuda.v = args.v.data();
  cuda.g = args.g.data();
  cuda.initial_state = args.initial_state.data();
  cuda.cu_seqlens = Data(args.cu_seqlens);
  cuda.saved = args.saved.data();
  cuda.d_o = args.d_o.data();
  cuda.d_final_state = args.d_final_state.data();
  cuda.dq = args.dq.data();
  cuda.dk = args.dk.data();
  cuda.dv = args.dv.data();
  cuda.dg = args.dg.data();
  cuda.d_initial_state = args.d_initial_state.data();
  cuda.workspace = DeviceWorkspace(ctx, "ChunkGlaBwd",
                                   ChunkGlaBwdWorkspaceBytes(cuda.shape));
  CUDA_CHECK(ChunkGlaBwdCuda(cuda, static_cast<cudaStream_t>(ctx.stream)));
}

template <typename T, typename Gate>
int64_t SavedFloatsCuda(const Shape& keys, const Shape& values,
                        CuSeqlens cu_seqlens) {
  const int64_t bytes =
      ChunkGlaSavedBytes(CudaShape<T, Gate>(keys, values, cu_seqlens));
  constexpr int64_t kFloat = sizeof(float);
  return (bytes + kFloat - 1) / kFloat;
}

template <typename T, typename Gate>
int64_t WorkspaceBytesCuda(const Shape& keys, const Shape& values,
                           CuSeqlens cu_seqlens) {
  const ChunkGlaShape shape = CudaShape<T, Gate>(keys, values, cu_seqlens);
  return std::max(ChunkGlaFwdWorkspaceBytes(shape),
                  ChunkGlaBwdWorkspaceBytes(shape));
}
#else
// The same names for a build that has only the CPU.
[[noreturn]] void NoCuda() {
  LOG(FATAL) << "chunk_gla: no CUDA in this build; build with --config=cuda";
  __builtin_unreachable();
}
template <typename Args>
void FwdCuda(const ExecutionContext&, const Args&) {
  NoCuda();
}
template <typename Args>
void BwdCuda(const ExecutionContext&, const Args&) {
  NoCuda();
}
template <typename T, typename Gate>
int64_t SavedFloatsCuda(const Shape&, const Shape&, CuSeqlens) {
  NoCuda();
}
template <typename T, typename Gate>
int64_t WorkspaceBytesCuda(const Shape&, const Shape&, CuSeqlens) {
  NoCuda();
}
#endif

}  // namespace

template <typename T, typename Gate>
void ChunkGlaFwd(const ExecutionContext& ctx,
                 const ChunkGlaFwdArgsOf<T, Gate>& args) {
  CheckDevice<T>(ctx, "ChunkGlaFwd");
  CheckArgs(args);
  if constexpr (kIsCpuType<T>) {
    internal::ChunkGlaFwdCpu(ctx, args);
  } else {
    FwdCuda(ctx, args);
  }
}

template <typename T, typename Gate>
void ChunkGlaBwd(const ExecutionContext& ctx,
                 const ChunkGlaBwdArgsOf<T, Gate>& args) {
  CheckDevice<T>(ctx, "ChunkGlaBwd");
  CheckArgs(args);
  if constexpr (kIsCpuType<T>) {
    internal::ChunkGlaBwdCpu(ctx, args);
  } else {
    BwdCuda(ctx, args);
  }
}

template <typename T, typename Gate>
int64_t ChunkGlaSavedFloats(const Shape& k_shape, const Shape& v_shape,
                            CuSeqlens cu_seqlens) {
  if constexpr (kIsCpuType<T>) {
    return internal::ChunkGlaSavedFloatsCpu(k_shape, v_shape, cu_seqlens);
  } else {
    return SavedFloatsCuda<T, Gate>(k_shape, v_shape, cu_seqlens);
  }
}

template <typename T, typename Gate>
int64_t ChunkGlaWorkspaceBytes(const Shape& k_shape, const Shape& v_shape,
                               CuSeqlens cu_seqlens) {
  if constexpr (kIsCpuType<T>) {
    return 0;
  } else {
    return WorkspaceBytesCuda<T, Gate>(k_shape, v_shape, cu_seqlens);
  }
}

#define GLA_INSTANTIATE(T, Gate)                                               \
  template void ChunkGlaFwd(const ExecutionContext&,                           \
                            const ChunkGlaFwdArgsOf<T, Gate>&);                \
  template void ChunkGlaBwd(const ExecutionContext&,                           \
                            const ChunkGlaBwdArgsOf<T, Gate>&);                \
  template int64_t ChunkGlaSavedFloats<T, Gate>(const Shape&, const Shape&,    \
                                                CuSeqlens);                    \
  template int64_t ChunkGlaWorkspaceBytes<T, Gate>(const Shape&, const Shape&, \
                                                   CuSeqlens)
GLA_INSTANTIATE(float, float);
GLA_INSTANTIATE(BFloat16, float);
GLA_INSTANTIATE(BFloat16, BFloat16);
GLA_INSTANTIATE(Float16, float);
GLA_INSTANTIATE(Float16, BFloat16);
#undef GLA_INSTANTIATE

}  // namespace gla
