#include "kernels/gla/chunk_gla_runner.h"

#include <algorithm>
#include <type_traits>

#include "kernels/gla/chunk_gla.h"
#include "kernels/testing/bfloat16.h"

namespace gla {
namespace {

float ToFloat(float x) { return x; }

template <typename T>
OwnedTensor<T, 4> Convert(const OwnedTensor<float, 4>& from) {
  if constexpr (std::is_same_v<T, float>) {
    return from;
  } else {
    OwnedTensor<T, 4> to(from.shape());
    std::transform(from.values().begin(), from.values().end(), to.data(),
                   ToBFloat16);
    return to;
  }
}

// Tensors of T on the device for one problem.
template <typename T>
class Runner {
 public:
  Runner(TestDevice& device, const GlaProblem& problem)
      : device_(device), problem_(problem), ctx_(device.ctx()) {
    const GlaShape& shape = problem.shape;
    fwd_.q = Upload(problem.q);
    fwd_.k = Upload(problem.k);
    fwd_.v = Upload(problem.v);
    fwd_.g = device.Upload(problem.g);
    if (problem.with_initial_state) {
      fwd_.initial_state = device.Upload(problem.initial_state);
    }
    fwd_.cu_seqlens = CuSeqlens();
    fwd_.scale = problem.scale;
    fwd_.o = Upload(GlaResults(shape).o);
    AddWorkspace();
  }

  OwnedTensor<float, 4> Output() {
    ChunkGlaFwd(ctx_, fwd_);
    return Download(fwd_.o);
  }

  GlaResults All() {
    GlaResults results(problem_.shape);
    fwd_.final_state = device_.Upload(results.final_state);
    fwd_.saved = device_.Upload(PoisonedTensor<1>({SavedFloats()}));
    ChunkGlaBwdArgsOf<T> bwd = BackwardArgs(results);
    ChunkGlaFwd(ctx_, fwd_);
    ChunkGlaBwd(ctx_, bwd);
    results.o = Download(fwd_.o);
    results.final_state = device_.Download(fwd_.final_state);
    results.dq = Download(bwd.dq);
    results.dk = Download(bwd.dk);
    results.dv = Download(bwd.dv);
    results.dg = device_.Download(bwd.dg);
    results.d_initial_state = device_.Download(bwd.d_initial_state);
    return results;
  }

 private:
  TensorView<T, 4> Upload(const OwnedTensor<float, 4>& host) {
    return device_.Upload(Convert<T>(host));
  }

  OwnedTensor<float, 4> Download(TensorView<T, 4> tensor) {
    const OwnedTensor<T, 4> from = device_.Download(tensor);
    OwnedTensor<float, 4> to(from.shape());
    std::transform(from.values().begin(), from.values().end(), to.data(),
                   [](T x) { return ToFloat(x); });
    return to;
  }

  absl::Span<const int32_t> CuSeqlens() {
    const std::vector<int32_t>& from = problem_.shape.cu_seqlens;
    if (from.empty()) return {};
    OwnedTensor<int32_t, 1> bounds({static_cast<int64_t>(from.size())});
    std::copy(from.begin(), from.end(), bounds.data());
    return {device_.Upload(bounds).data(), from.size()};
  }

  // Sizes come from the host's copy of cu_seqlens.
  int64_t SavedFloats() const {
    const GlaShape& shape = problem_.shape;
    return ChunkGlaSavedFloats<T>(shape.keys(), shape.values(),
                                  shape.cu_seqlens);
  }

  void AddWorkspace() {
    const GlaShape& shape = problem_.shape;
    const int64_t bytes = ChunkGlaWorkspaceBytes<T>(
        shape.keys(), shape.values(), shape.cu_seqlens);
    const int64_t floats = (bytes + 3) / 4;
    ctx_.device_workspace = device_.Upload(PoisonedTensor<1>({floats})).data();
    ctx_.device_workspace_bytes = bytes;
  }

  ChunkGlaBwdArgsOf<T> BackwardArgs(const GlaResults& poison) {
    ChunkGlaBwdArgsOf<T> bwd;
    bwd.q = fwd_.q;
    bwd.k = fwd_.k;
    bwd.v = fwd_.v;
    bwd.g = fwd_.g;
    bwd.initial_state = fwd_.initial_state;
    bwd.cu_seqlens = fwd_.cu_seqlens;
    bwd.scale = fwd_.scale;
    bwd.saved = fwd_.saved;
    bwd.d_o = Upload(problem_.d_o);
    if (problem_.with_d_final_state) {
      bwd.d_final_state = device_.Upload(problem_.d_final_state);
    }
    bwd.dq = Upload(poison.dq);
    bwd.dk = Upload(poison.dk);
    bwd.dv = Upload(poison.dv);
    bwd.dg = device_.Upload(poison.dg);
    bwd.d_initial_state = device_.Upload(poison.d_initial_state);
    return bwd;
  }

  TestDevice& device_;
  const GlaProblem& problem_;
  ExecutionContext ctx_;
  ChunkGlaFwdArgsOf<T> fwd_;
};

}  // namespace

GlaProblem RoundedFor(Device device, GlaProblem problem) {
  if (device == Device::kCpu) return problem;
  for (OwnedTensor<float, 4>* x :
       {&problem.q, &problem.k, &problem.v, &problem.d_o}) {
    for (size_t i = 0; i < x->size(); ++i) {
      (*x)[i] = gla::ToFloat(ToBFloat16((*x)[i]));
    }
  }
  return problem;
}

GlaResults RunChunkGla(TestDevice& device, const GlaProblem& problem) {
  return device.ctx().device == Device::kCpu
             ? Runner<float>(device, problem).All()
             : Runner<BFloat16>(device, problem).All();
}

OwnedTensor<float, 4> RunChunkGlaOutput(TestDevice& device,
                                        const GlaProblem& problem) {
  return device.ctx().device == Device::kCpu
             ? Runner<float>(device, problem).Output()
             : Runner<BFloat16>(device, problem).Output();
}

void ExpectChunkGlaResults(Device device, const GlaResults& results,
                           const GlaExpected& expected) {
  if (device == Device::kCpu) return ExpectGlaResults(1e-4, results, expected);
  ExpectGlaResults(/*limit=*/6e-3, /*dg_limit=*/1.5e-2, results, expected);
}

}  // namespace gla
