#include "model/flops.h"

#include <cstdint>

namespace gla {

double TrainingFlopsPerToken(const ParameterTable& table) {
  int64_t N = table.num_parameters();
  const bool tied = table.Find("lm_head.weight") == nullptr;
  if (!tied) N -= table.Find("model.embeddings.weight")->size;
  return 6.0 * static_cast<double>(N);
}

}  // namespace gla
