#include "trainer_service/testing/tiny_job.h"

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "gtest/gtest.h"
#include "model/tokenizer/tokenizer.h"
#include "trainer_service/data/dataset.h"
#include "trainer_service/data/tokenize_text.h"
#include "trainer_service/job_spec.h"

namespace gla::trainer {

std::string FreshFolder(const std::string& name) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/", name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

std::string MakeTinyDataset(const std::string& directory) {
  const std::string text = directory + ".txt";
  {
    std::ofstream file(text);
    for (int i = 0; i < 200; ++i) {
      file << "line " << i << " says " << i * i % 97 << " and no more\n";
    }
  }
  const auto manifest =
      TokenizeText(*MakeByteTokenizer(),
                   {.inputs = {text}, .output = directory, .holdout = 0.1});
  CHECK(manifest.ok()) << manifest.status();
  return directory;
}

v1::JobSpec TinyJobSpec(const std::string& dataset, int steps) {
  v1::JobSpec spec;
  gla::v1::ModelConfig* model = spec.mutable_model();
  model->set_hidden_size(32);
  model->set_num_hidden_layers(1);
  model->set_num_heads(2);
  spec.mutable_data()->set_dataset(dataset);
  spec.mutable_data()->set_sequence_length(32);
  spec.mutable_data()->set_batch_sequences(4);
  spec.mutable_data()->set_micro_batch_sequences(2);
  spec.mutable_optimizer()->set_learning_rate(3e-3);
  spec.set_total_steps(steps);
  spec.set_seed(1);
  spec.set_threads(1);
  return spec;
}

v1::JobSpec ResolvedTinyJobSpec(const std::string& dataset, int steps) {
  const v1::JobSpec spec = TinyJobSpec(dataset, steps);
  const auto opened = OpenDataset(spec);
  CHECK(opened.ok()) << opened.status();
  const auto resolved = ResolveJobSpec(spec, **opened, ThisMachine());
  CHECK(resolved.ok()) << resolved.status();
  return *resolved;
}

}  // namespace gla::trainer
