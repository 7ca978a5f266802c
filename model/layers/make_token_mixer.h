// Which token mixer a config asks for: the one place that knows them all.
#ifndef GLA_MODEL_LAYERS_MAKE_TOKEN_MIXER_H_
#define GLA_MODEL_LAYERS_MAKE_TOKEN_MIXER_H_

#include <memory>

#include "model/config.h"
#include "model/layers/token_mixer.h"
#include "model/parameters.h"

namespace gla {

// The mixer of layer `layer`. `parameters` must outlive it. (GLA is the only
// kind so far.)
std::unique_ptr<TokenMixer> MakeTokenMixer(const GlaConfig& config,
                                           const Parameters& parameters,
                                           int layer);

}  // namespace gla

#endif  // GLA_MODEL_LAYERS_MAKE_TOKEN_MIXER_H_
