// A served directory for tests: the tiny model with the byte tokenizer.
#ifndef GLA_INFERENCE_SERVICE_TESTING_TINY_CHECKPOINT_H_
#define GLA_INFERENCE_SERVICE_TESTING_TINY_CHECKPOINT_H_

#include <cstdint>
#include <string>

namespace gla::inference {

// Writes MakeTinyModel(seed) into the new directory `name` of the test's
// temporary directory, with a tokenizer or without, and returns its path.
std::string WriteTinyCheckpoint(const std::string& name, uint64_t seed,
                                bool with_tokenizer = true);

}  // namespace gla::inference

#endif  // GLA_INFERENCE_SERVICE_TESTING_TINY_CHECKPOINT_H_
