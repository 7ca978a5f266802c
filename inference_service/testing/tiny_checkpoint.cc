#include "inference_service/testing/tiny_checkpoint.h"

#include <cstdlib>
#include <filesystem>

#include "glog/logging.h"
#include "model/checkpoint/model_directory.h"
#include "model/testing/tiny_model.h"
#include "model/tokenizer/tokenizer.h"

namespace gla::inference {

std::string WriteTinyCheckpoint(const std::string& name, uint64_t seed,
                                bool with_tokenizer) {
  const std::string directory =
      std::string(CHECK_NOTNULL(std::getenv("TEST_TMPDIR"))) + "/" + name;
  CHECK(std::filesystem::create_directory(directory)) << directory;
  const LoadedModel model = MakeTinyModel(seed);
  absl::Status status =
      SaveModelDirectory(directory, model.config, *model.parameters);
  if (status.ok() && with_tokenizer) {
    status = MakeByteTokenizer()->Save(directory);
  }
  CHECK(status.ok()) << status;
  return directory;
}

}  // namespace gla::inference
