#include "model/checkpoint/checkpoint.h"

#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/model_directory.h"

namespace gla {
namespace {

namespace fs = std::filesystem;

GlaConfig SmallConfig() {
  GlaConfig config;
  config.vocab_size = 256;
  config.hidden_size = 16;
  config.num_hidden_layers = 1;
  config.num_heads = 2;
  config.intermediate_size = 24;
  return config;
}

// A training run that has just done some steps.
struct TrainingRun {
  TrainingRun() : table(config), weights(&table), m(&table), v(&table) {
    At(10);
  }

  // Other values for every step.
  CheckpointContents At(int64_t step) {
    InitializeParameters(step, config, &weights);
    InitializeParameters(step + 1000, config, &m);
    InitializeParameters(step + 2000, config, &v);
    CheckpointContents contents{.config = &config,
                                .weights = &weights,
                                .adam_m = &m,
                                .adam_v = &v,
                                .tokenizer = tokenizer.get(),
                                .train_state = {},
                                .job = "jobs/seven",
                                .attempt = 3,
                                .parent = "",
                                .evaluation_loss = {}};
    contents.train_state.set_step(step);
    contents.train_state.set_tokens(step * 100);
    return contents;
  }

  const GlaConfig config = SmallConfig();
  const ParameterTable table;
  Parameters weights, m, v;
  const std::unique_ptr<Tokenizer> tokenizer = MakeByteTokenizer();
};

std::string NewRoot(const std::string& name) {
  const std::string path = testing::TempDir() + "/" + name;
  fs::remove_all(path);
  return path;
}

std::vector<std::string> Names(const std::string& root) {
  std::vector<std::string> names;
  const auto all = ListCheckpoints(root);
  for (const std::string& path : *all) {
    names.push_back(fs::path(path).filename());
  }
  return names;
}

bool SameBits(const Parameters& a, const Parameters& b) {
  return std::memcmp(a.flat().data(), b.flat().data(),
                     a.flat().size() * sizeof(float)) == 0;
}

void FlipBit(const std::string& path, int64_t byte) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(byte);
  const char flipped = static_cast<char>(file.get() ^ 0x10);
  file.seekp(byte);
  file.put(flipped);
}

TEST(Checkpoint, GivesTheRunBack) {
  TrainingRun run;
  const std::string root = NewRoot("back") + "/deep/root";
  CheckpointContents contents = run.At(12000);
  contents.parent = "step-000000011000";
  contents.evaluation_loss = 1.25;
  contents.train_state.set_seed(99);
  const auto directory = CommitCheckpoint(root, contents);
  ASSERT_TRUE(directory.ok()) << directory.status();
  EXPECT_EQ(*directory, root + "/step-000000012000");

  const auto manifest = VerifyCheckpoint(*directory);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->job(), "jobs/seven");
  EXPECT_EQ(manifest->attempt(), 3);
  EXPECT_EQ(manifest->step(), 12000);
  EXPECT_EQ(manifest->parent(), "step-000000011000");
  EXPECT_EQ(manifest->evaluation_loss(), 1.25);
  EXPECT_GT(manifest->create_time().seconds(), 0);
  EXPECT_GE(manifest->build_id().size(), 32u);
  EXPECT_EQ(manifest->files_size(), 5);

  Parameters weights(&run.table), m(&run.table), v(&run.table);
  const auto state = LoadTrainingState(*directory, &weights, &m, &v);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->step(), 12000);
  EXPECT_EQ(state->seed(), 99u);
  EXPECT_TRUE(SameBits(weights, run.weights));
  EXPECT_TRUE(SameBits(m, run.m));
  EXPECT_TRUE(SameBits(v, run.v));
}

TEST(Checkpoint, IsAModelDirectory) {
  TrainingRun run;
  const auto directory = CommitCheckpoint(NewRoot("model"), run.At(5));
  const auto model = LoadModelDirectory(*directory);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->config, run.config);
  EXPECT_TRUE(SameBits(*model->parameters, run.weights));
  EXPECT_EQ((*LoadTokenizer(*directory))->Digest(), run.tokenizer->Digest());
}

TEST(Checkpoint, IsTheSameWhenWrittenAgain) {
  TrainingRun run;
  const auto a = CommitCheckpoint(NewRoot("a"), run.At(5));
  const auto b = CommitCheckpoint(NewRoot("b"), run.At(5));
  for (const char* name : {"config.json", "model.safetensors",
                           "optimizer.safetensors", "train_state.pb"}) {
    EXPECT_TRUE(*ReadFile(absl::StrCat(*a, "/", name)) ==
                *ReadFile(absl::StrCat(*b, "/", name)))
        << name;
  }
}

TEST(Checkpoint, AreListedByStep) {
  TrainingRun run;
  const std::string root = NewRoot("list");
  EXPECT_TRUE(Names(root).empty());
  for (const int64_t step : {900, 30, 12000}) {
    ASSERT_TRUE(CommitCheckpoint(root, run.At(step)).ok());
  }
  fs::create_directory(root + "/.staging-000000000001-a3");
  fs::create_directory(root + "/step-12");
  std::ofstream(root + "/notes") << "mine";
  EXPECT_EQ(Names(root),
            (std::vector<std::string>{"step-000000000030", "step-000000000900",
                                      "step-000000012000"}));
}

// Every byte of MANIFEST, and some of every other file.
TEST(Checkpoint, FindsAFlippedBitInAnyFile) {
  TrainingRun run;
  const std::string root = NewRoot("flip");
  const std::string directory = *CommitCheckpoint(root, run.At(5));
  ASSERT_TRUE(VerifyCheckpoint(directory).ok());
  int files = 0;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string path = entry.path();
    const int64_t size = entry.file_size();
    const bool manifest = entry.path().filename() == "MANIFEST";
    const int64_t step = manifest ? 1 : size / 7 + 1;
    for (int64_t byte = 0; byte < size; byte += step) {
      FlipBit(path, byte);
      const absl::Status status = VerifyCheckpoint(directory).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << path;
      EXPECT_NE(status.message().find(path), std::string::npos) << status;
      FlipBit(path, byte);
    }
    ++files;
  }
  EXPECT_EQ(files, 6);
  EXPECT_TRUE(VerifyCheckpoint(directory).ok());
}

TEST(Checkpoint, FindsAMissingOrShorterFile) {
  TrainingRun run;
  const std::string root = NewRoot("short");
  for (const char* name : {"config.json", "model.safetensors",
                           "optimizer.safetensors", "train_state.pb"}) {
    const std::string directory = *CommitCheckpoint(root, run.At(5));
    const std::string path = absl::StrCat(directory, "/", name);
    fs::resize_file(path, fs::file_size(path) - 1);
    absl::Status status = LoadModelDirectory(directory).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_NE(status.message().find(name), std::string::npos);
    fs::remove(path);
    status = VerifyCheckpoint(directory).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_NE(status.message().find(name), std::string::npos);
  }
  const std::string directory = *CommitCheckpoint(root, run.At(5));
  fs::resize_file(directory + "/MANIFEST", 20);
  EXPECT_EQ(ReadManifest(directory).status().code(),
            absl::StatusCode::kDataLoss);
  fs::remove(directory + "/MANIFEST");
  EXPECT_EQ(ReadManifest(directory).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(Checkpoint, KeepsAValidOneOfTheSameStep) {
  TrainingRun run;
  const std::string root = NewRoot("same");
  const std::string first = *CommitCheckpoint(root, run.At(5));
  CheckpointContents again = run.At(5);
  again.attempt = 4;
  EXPECT_EQ(*CommitCheckpoint(root, again), first);
  EXPECT_EQ(ReadManifest(first)->attempt(), 3);
}

TEST(Checkpoint, PutsADamagedOneOfTheSameStepAside) {
  TrainingRun run;
  const std::string root = NewRoot("damaged");
  for (int n = 0; n < 2; ++n) {
    const std::string directory = *CommitCheckpoint(root, run.At(5));
    FlipBit(directory + "/model.safetensors", 3000);
    ASSERT_EQ(*CommitCheckpoint(root, run.At(5)), directory);
    EXPECT_TRUE(VerifyCheckpoint(directory).ok());
  }
  EXPECT_EQ(Names(root).size(), 1u);
  EXPECT_TRUE(fs::exists(root + "/quarantine/step-000000000005"));
  EXPECT_TRUE(fs::exists(root + "/quarantine/step-000000000005.2"));
}

TEST(Checkpoint, RefusesAnotherModelsState) {
  TrainingRun run;
  const std::string directory = *CommitCheckpoint(NewRoot("other"), run.At(5));
  GlaConfig other = SmallConfig();
  other.intermediate_size = 25;
  const ParameterTable table(other);
  Parameters weights(&table), m(&table), v(&table);
  const absl::Status status =
      LoadTrainingState(directory, &weights, &m, &v).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const char* part :
       {"model.layers.0.mlp.gate_proj.weight", "[25, 16]", "[24, 16]"}) {
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos);
  }
}

TEST(CollectCheckpoints, KeepsTheNewest) {
  TrainingRun run;
  const std::string root = NewRoot("collect");
  for (int64_t step = 1; step <= 5; ++step) {
    ASSERT_TRUE(CommitCheckpoint(root, run.At(step)).ok());
  }
  ASSERT_TRUE(CollectCheckpoints(root, /*keep_latest=*/2, /*attempt=*/3).ok());
  EXPECT_EQ(Names(root), (std::vector<std::string>{"step-000000000004",
                                                   "step-000000000005"}));
  EXPECT_EQ(std::distance(fs::directory_iterator(root), {}), 2);
}

TEST(CollectCheckpoints, GoesOnAfterACollectionThatDidNotEnd) {
  TrainingRun run;
  const std::string root = NewRoot("half");
  for (int64_t step = 1; step <= 3; ++step) {
    ASSERT_TRUE(CommitCheckpoint(root, run.At(step)).ok());
  }
  const std::string leftover = root + "/.staging-step-000000000001-a0";
  fs::create_directory(leftover);
  std::ofstream(leftover + "/config.json") << "{}";
  const absl::Status status = CollectCheckpoints(root, 2, /*attempt=*/0);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(std::distance(fs::directory_iterator(root), {}), 2);
}

TEST(CollectCheckpoints, DeletesStagingOfEarlierAttempts) {
  const std::string root = NewRoot("stale");
  for (const char* name :
       {"/.staging-000000000007-a2", "/.staging-000000000007-a3",
        "/.staging-000000000009-a4", "/quarantine", "/.staging-mine"}) {
    fs::create_directories(root + name);
    std::ofstream(absl::StrCat(root, name, "/file")) << "x";
  }
  ASSERT_TRUE(CollectCheckpoints(root, /*keep_latest=*/2, /*attempt=*/3).ok());
  EXPECT_FALSE(fs::exists(root + "/.staging-000000000007-a2"));
  EXPECT_TRUE(fs::exists(root + "/.staging-000000000007-a3"));
  EXPECT_TRUE(fs::exists(root + "/.staging-000000000009-a4"));
  EXPECT_TRUE(fs::exists(root + "/.staging-mine"));
  EXPECT_TRUE(fs::exists(root + "/quarantine"));
  EXPECT_TRUE(CollectCheckpoints(NewRoot("absent"), 2, 3).ok());
}

TEST(CommitCheckpoint, NamesARootThatCannotBe) {
  TrainingRun run;
  const std::string root = NewRoot("file");
  std::ofstream(root) << "not a directory";
  const absl::Status status = CommitCheckpoint(root, run.At(5)).status();
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(root), std::string::npos) << status;
}

// Exits with 0 if a commit that runs out of room leaves only what was there.
[[noreturn]] void CommitWithoutRoom(const std::string& root) {
  TrainingRun run;
  signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {4096, 4096};  // less than model.safetensors
  setrlimit(RLIMIT_FSIZE, &limit);
  const absl::Status status = CommitCheckpoint(root, run.At(6)).status();
  exit(!status.ok() && std::distance(fs::directory_iterator(root), {}) == 1
           ? 0
           : 1);
}

TEST(CommitCheckpointDeathTest, LeavesNothingWhenTheDiskIsFull) {
  TrainingRun run;
  const std::string root = NewRoot("full");
  const std::string previous = *CommitCheckpoint(root, run.At(5));
  EXPECT_EXIT(CommitWithoutRoom(root), testing::ExitedWithCode(0), "");
  EXPECT_TRUE(VerifyCheckpoint(previous).ok());
  EXPECT_EQ(Names(root).size(), 1u);
}

}  // namespace
}  // namespace gla
