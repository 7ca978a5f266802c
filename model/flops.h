// Floating-point operations of training, for utilisation: what a model needs,
// not what an implementation happens to do.
#ifndef GLA_MODEL_FLOPS_H_
#define GLA_MODEL_FLOPS_H_

#include "model/parameters.h"

namespace gla {

// 6 N per token: 2 N of the forward and 4 N of the backward pass, a product
// and a sum for each weight. N counts every parameter that is multiplied: all
// but the input embedding of an untied model, whose rows are only looked up.
// The token mixing itself is left out, as is usual.
double TrainingFlopsPerToken(const ParameterTable& table);

}  // namespace gla

#endif  // GLA_MODEL_FLOPS_H_
