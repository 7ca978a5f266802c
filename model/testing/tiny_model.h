// A small model with random weights, for tests of everything that serves or
// trains one: milliseconds a step, and yet every part of it matters.
#ifndef GLA_MODEL_TESTING_TINY_MODEL_H_
#define GLA_MODEL_TESTING_TINY_MODEL_H_

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "model/checkpoint/model_directory.h"
#include "model/config.h"
#include "model/parameters.h"

namespace gla {

// 256 tokens (those of the byte tokenizer), hidden 64, 2 layers, 2 heads with
// K 16 and V 32, untied.
GlaConfig TinyConfig();

// TinyConfig with one thing changed, for each thing that a config can change:
// tests that hold for one model run over all of them.
struct ConfigVariant {
  std::string name;  // of letters and digits
  GlaConfig config;
};
std::vector<ConfigVariant> TinyVariants();
void PrintTo(const ConfigVariant& variant, std::ostream* os);  // for gtest

// Weights that leave nothing near zero: matrices N(0, 1 / in), norms around
// one, gate biases around one and a half (gates spread over (0, 1), memory over
// some tens of tokens). Every value depends on (seed, tensor's place, element).
void RandomizeParameters(uint64_t seed, Parameters* parameters);

// A model of `config` with such weights.
LoadedModel MakeTinyModel(uint64_t seed = 1,
                          const GlaConfig& config = TinyConfig());

}  // namespace gla

#endif  // GLA_MODEL_TESTING_TINY_MODEL_H_
