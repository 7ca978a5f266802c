#include "model/layers/make_token_mixer.h"

#include "model/layers/gla_mixer.h"

namespace gla {

std::unique_ptr<TokenMixer> MakeTokenMixer(const GlaConfig& config,
                                           const Parameters& parameters,
                                           int layer) {
  return std::make_unique<GlaMixer>(config, parameters, layer);
}

}  // namespace gla
