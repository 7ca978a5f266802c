// A Hugging Face model directory: config.json and model.safetensors (one file,
// or shards with model.safetensors.index.json).
#ifndef GLA_MODEL_CHECKPOINT_MODEL_DIRECTORY_H_
#define GLA_MODEL_CHECKPOINT_MODEL_DIRECTORY_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/parameters.h"

namespace gla {

// A model in memory. Movable; `parameters` points into `table`.
struct LoadedModel {
  GlaConfig config;
  std::unique_ptr<ParameterTable> table;
  std::unique_ptr<Parameters> parameters;
};

// Loads any GLA directory of fla: float32, bfloat16 or float16 tensors (widened
// to float32), split or joined MLP (old gate_proj [2I, hidden]), tied or not.
// If the directory has a MANIFEST, all files are checked against it first.
//   NOT_FOUND         directory or a file of it is missing
//   INVALID_ARGUMENT  config not supported; a tensor missing, unknown, or of
//                     another shape (names it and both shapes)
//   DATA_LOSS         damaged or truncated file (names it)
absl::StatusOr<LoadedModel> LoadModelDirectory(const std::string& directory);

// Writes config.json and model.safetensors (float32, split layout) into
// `directory`, which exists. Files are synced to disk. Refuses to overwrite.
absl::Status SaveModelDirectory(const std::string& directory,
                                const GlaConfig& config,
                                const Parameters& parameters);

}  // namespace gla

#endif  // GLA_MODEL_CHECKPOINT_MODEL_DIRECTORY_H_
