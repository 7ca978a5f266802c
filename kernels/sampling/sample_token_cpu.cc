#include <algorithm>
#include <cmath>

#include "glog/logging.h"
#include "kernels/base/philox.h"
#include "kernels/base/vector_math.h"
#include "kernels/sampling/sample_token.h"

namespace gla {
namespace {

// A token that may be drawn.
struct Candidate {
  float logit;
  float weight;  // e^((logit - max) / temperature), in (0, 1]
  int32_t token;
};

bool IsLessLikely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit < b.logit : a.token > b.token;
}

// Candidates from the most likely on. They are put in order as far as someone
// looks, by a heap, since a draw rarely looks beyond the first few.
class Ranking {
 public:
  Ranking(Candidate* candidates, int64_t size)
      : candidates_(candidates), size_(size), heap_size_(size) {
    std::make_heap(candidates, candidates + size, IsLessLikely);
  }
  int64_t size() const { return size_; }
  const Candidate& operator[](int64_t rank) {
    for (; heap_size_ >= size_ - rank; --heap_size_) {
      std::pop_heap(candidates_, candidates_ + heap_size_, IsLessLikely);
    }
    return candidates_[size_ - 1 - rank];
  }

 private:
  Candidate* candidates_;
  int64_t size_;
  int64_t heap_size_;  // ranked candidates stand behind the heap
};

// The first of the largest logits; NaN is never the largest.
int32_t Argmax(TensorView<const float, 1> logits) {
  int32_t best = -1;
  for (int64_t i = 0; i < logits.dim(0); ++i) {
    if (std::isnan(logits[i])) continue;
    if (best < 0 || logits[i] > logits[best]) best = i;
  }
  CHECK_GE(best, 0) << "none of " << logits.dim(0) << " logits is a number";
  return best;
}

// Writes e^((logit - max) / temperature). Equal to the largest gives 1, also
// where that is infinite.
void ComputeWeights(TensorView<const float, 1> logits, float max,
                    float temperature, float* weights) {
  const __m256 max8 = _mm256_set1_ps(max);
  const __m256 one = _mm256_set1_ps(1);
  ForEachVector(logits.dim(0), [&](int64_t i, auto lanes) {
    const __m256 logit = lanes.Load(logits.data() + i);
    const __m256 weight = Exp8((logit - max8) / temperature);
    lanes.Store(
        weights + i,
        _mm256_blendv_ps(weight, one, _mm256_cmp_ps(logit, max8, _CMP_EQ_OQ)));
  });
}

// Fills `candidates` with the tokens of non-zero weight, by rising token id;
// returns how many.
int64_t ListCandidates(TensorView<const float, 1> logits, const float* weights,
                       Candidate* candidates) {
  int64_t size = 0;
  for (int64_t i = 0; i < logits.dim(0); ++i) {
    if (weights[i] > 0) {  // false for NaN
      candidates[size++] = {logits[i], weights[i], static_cast<int32_t>(i)};
    }
  }
  return size;
}

// The candidates that the filters keep: the first `count` of the ranking.
struct Kept {
  int64_t count;
  double mass;  // sum of their weights
};

Kept Filter(const SamplingOptions& options, double total, Ranking* ranking) {
  Kept kept = {ranking->size(), total};
  if (options.top_k > 0 && options.top_k < kept.count) {
    kept = {options.top_k, 0};
    for (int64_t i = 0; i < kept.count; ++i) kept.mass += (*ranking)[i].weight;
  }
  if (options.top_p < 1) {
    const double wanted = options.top_p * kept.mass;
    const int64_t limit = kept.count;
    kept = {1, (*ranking)[0].weight};
    while (kept.count < limit && kept.mass < wanted) {
      kept.mass += (*ranking)[kept.count++].weight;
    }
  }
  return kept;
}

}  // namespace

int32_t SampleToken(const ExecutionContext& ctx,
                    TensorView<const float, 1> logits,
                    const SamplingOptions& options, int64_t position) {
  CHECK(ctx.device == Device::kCpu) << "sampling: built for the CPU only";
  CHECK_GE(options.temperature, 0);
  const int32_t argmax = Argmax(logits);
  if (options.temperature == 0) return argmax;

  ArenaScope scope(ctx.scratch);
  const int64_t vocab_size = logits.dim(0);
  float* weights = ctx.scratch->Allocate<float>(vocab_size);
  auto* candidates = ctx.scratch->Allocate<Candidate>(vocab_size);
  ComputeWeights(logits, logits[argmax], options.temperature, weights);
  const int64_t size = ListCandidates(logits, weights, candidates);
  double total = 0;
  for (int64_t i = 0; i < size; ++i) total += candidates[i].weight;

  Ranking ranking(candidates, size);
  const Kept kept = Filter(options, total, &ranking);
  const double target =
      PhiloxUniform(options.seed, /*stream=*/0, position) * kept.mass;
  double cumulative = 0;
  int64_t rank = 0;
  for (; rank < kept.count - 1; ++rank) {
    cumulative += ranking[rank].weight;
    if (cumulative > target) break;
  }
  return ranking[rank].token;
}

}  // namespace gla
