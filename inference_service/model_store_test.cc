#include "inference_service/model_store.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "inference_service/testing/recording_reader.h"
#include "inference_service/testing/tiny_checkpoint.h"
#include "model/testing/tiny_model.h"

namespace gla::inference {
namespace {

GenerationRequest Request(int max_new_tokens = 20) {
  GenerationRequest request;
  request.prompt = {'a', 'b', 'c'};
  request.max_new_tokens = max_new_tokens;
  return request;
}

std::vector<int32_t> Tokens(ServedModel* model) {
  const auto reader =
      RecordingReader::Start(&model->engine(), Request()).value();
  EXPECT_TRUE(reader->AwaitFinish().status.ok());
  return reader->tokens();
}

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

// Two checkpoints and one whose model file lost its last byte, written once.
struct Checkpoints {
  std::string one = WriteTinyCheckpoint("one", 1);
  std::string two = WriteTinyCheckpoint("two", 2);
  std::string damaged = WriteTinyCheckpoint("damaged", 3);
  Checkpoints() {
    const std::string file = damaged + "/model.safetensors";
    std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  }
};

class ModelStoreTest : public testing::Test {
 protected:
  static const Checkpoints& checkpoints() {
    static const auto* checkpoints = new Checkpoints;
    return *checkpoints;
  }
  absl::Status Load(const std::string& name, const std::string& directory) {
    return store_.Load(name, directory).status();
  }

  ModelStore store_{
      ServingOptions{.state_slots = 2, .threads = 1, .engine = {}}};
};

TEST_F(ModelStoreTest, SaysWhatAModelIs) {
  const auto model = store_.Load("models/tiny", checkpoints().one).value();
  EXPECT_EQ(model->name(), "models/tiny");
  EXPECT_EQ(model->version(), 1);
  EXPECT_EQ(model->checkpoint(), checkpoints().one);
  EXPECT_EQ(model->config(), TinyConfig());
  EXPECT_EQ(model->num_parameters(),
            ParameterTable(TinyConfig()).num_parameters());
  // Two layers of H * K * V floats.
  EXPECT_EQ(model->engine().bytes_per_slot(), 2 * 2 * 16 * 32 * 4);
  ASSERT_NE(model->tokenizer(), nullptr);
}

TEST_F(ModelStoreTest, FindsByNameAndTheOnlyOneWithout) {
  EXPECT_EQ(store_.Find("").status(),
            absl::NotFoundError("model: none is loaded"));
  ASSERT_TRUE(Load("models/a", checkpoints().one).ok());
  EXPECT_EQ((*store_.Find(""))->name(), "models/a");
  ASSERT_TRUE(Load("models/b", checkpoints().two).ok());
  EXPECT_EQ((*store_.Find("models/b"))->checkpoint(), checkpoints().two);
  EXPECT_EQ(store_.Find("").status(),
            absl::InvalidArgumentError("model: empty, and more than one is "
                                       "loaded: models/a, models/b"));
  EXPECT_EQ(store_.Find("models/c").status(),
            absl::NotFoundError("model: \"models/c\" is not loaded; loaded: "
                                "models/a, models/b"));
}

TEST_F(ModelStoreTest, ServesTwoModelsAtOnce) {
  const auto a = store_.Load("models/a", checkpoints().one).value();
  const auto b = store_.Load("models/b", checkpoints().two).value();
  EXPECT_EQ(store_.List().size(), 2u);
  const auto tokens_a = Tokens(a.get()), tokens_b = Tokens(b.get());
  EXPECT_NE(tokens_a, tokens_b);
  EXPECT_EQ(Tokens(a.get()), tokens_a);
}

TEST_F(ModelStoreTest, RefusesNamesThatAreNotNames) {
  for (const std::string name : {"", "tiny", "models/", "models/Tiny",
                                 "models/1", "models/a_b", "models/a/b"}) {
    EXPECT_EQ(Load(name, checkpoints().one).code(),
              absl::StatusCode::kInvalidArgument)
        << name;
  }
  const std::string longest(63, 'a');
  EXPECT_TRUE(Load("models/" + longest, checkpoints().one).ok());
  EXPECT_FALSE(Load("models/a" + longest, checkpoints().one).ok());
}

TEST_F(ModelStoreTest, AnOldVersionFinishesItsRequestsAndIsFreed) {
  auto old = store_.Load("models/tiny", checkpoints().one).value();
  const std::vector<int32_t> old_tokens = Tokens(old.get());
  // A reader that is behind keeps its request from finishing.
  const Engine::StreamId stream =
      *old->engine().Submit(Request(/*max_new_tokens=*/300), [] {});
  ASSERT_TRUE(old->engine().AwaitStats(
      [](const EngineStats& s) { return s.parked == 1; }, Soon()));

  ASSERT_TRUE(Load("models/tiny", checkpoints().two).ok());
  const auto now = store_.Find("models/tiny").value();
  EXPECT_EQ(now->version(), 2);
  EXPECT_NE(Tokens(now.get()), old_tokens);
  EXPECT_FALSE(store_.AwaitAlive(1, absl::InfinitePast()));

  EXPECT_EQ(old->engine().Take(stream).tokens.size(), 256u);
  ASSERT_TRUE(old->engine().AwaitStats(
      [](const EngineStats& s) { return s.idle(); }, Soon()));
  EXPECT_TRUE(old->engine().Take(stream).finish->status.ok());
  old = nullptr;
  EXPECT_TRUE(store_.AwaitAlive(1, Soon()));
}

TEST_F(ModelStoreTest, AModelLetGoByItsOwnEngineIsFreed) {
  auto model = store_.Load("models/tiny", checkpoints().one).value();
  ASSERT_TRUE(Load("models/tiny", checkpoints().two).ok());
  Engine* engine = &model->engine();
  // The callback is the last to hold the model.
  ASSERT_TRUE(engine->Submit(Request(), [holds = std::move(model)] {}).ok());
  engine->Cancel(1);
  EXPECT_TRUE(store_.AwaitAlive(1, Soon()));
}

TEST_F(ModelStoreTest, AFailedLoadKeepsTheOldModel) {
  ASSERT_TRUE(Load("models/tiny", checkpoints().one).ok());
  EXPECT_EQ(Load("models/tiny", checkpoints().one + "/none").code(),
            absl::StatusCode::kNotFound);
  const absl::Status damaged = Load("models/tiny", checkpoints().damaged);
  EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss) << damaged;
  EXPECT_NE(damaged.message().find("model.safetensors"), std::string::npos);
  const auto model = store_.Find("models/tiny").value();
  EXPECT_EQ(model->version(), 1);
  EXPECT_EQ(Tokens(model.get()).size(), 20u);
  EXPECT_TRUE(store_.AwaitAlive(1, Soon()));
}

TEST_F(ModelStoreTest, RefusesWeightsThatAreNotFinite) {
  const std::string directory = WriteTinyCheckpoint("nan", 1);
  LoadedModel model = MakeTinyModel();
  model.parameters->matrix("lm_head.weight")[0][5] =
      std::numeric_limits<float>::quiet_NaN();
  std::filesystem::remove(directory + "/config.json");
  std::filesystem::remove(directory + "/model.safetensors");
  ASSERT_TRUE(
      SaveModelDirectory(directory, model.config, *model.parameters).ok());
  EXPECT_EQ(Load("models/tiny", directory),
            absl::InvalidArgumentError("lm_head.weight: element 5 is nan"));
}

TEST_F(ModelStoreTest, RefusesATokenizerWithMoreTokensThanTheModel) {
  GlaConfig config = TinyConfig();
  config.vocab_size = 200;
  const LoadedModel model = MakeTinyModel(1, config);
  const std::string directory = WriteTinyCheckpoint("small_vocabulary", 1);
  std::filesystem::remove(directory + "/config.json");
  std::filesystem::remove(directory + "/model.safetensors");
  ASSERT_TRUE(SaveModelDirectory(directory, config, *model.parameters).ok());
  const absl::Status status = Load("models/tiny", directory);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            directory + ": the tokenizer has 256 tokens, the model 200");
}

TEST_F(ModelStoreTest, ServesAModelWithoutATokenizer) {
  const std::string directory =
      WriteTinyCheckpoint("no_tokenizer", 1, /*with_tokenizer=*/false);
  const auto model = store_.Load("models/tiny", directory).value();
  EXPECT_EQ(model->tokenizer(), nullptr);
  GenerationRequest request = Request();
  request.ignore_eos = true;
  const auto reader = RecordingReader::Start(&model->engine(), request).value();
  EXPECT_TRUE(reader->AwaitFinish().status.ok());
  EXPECT_EQ(reader->tokens().size(), 20u);
  EXPECT_EQ(reader->text(), "");
}

TEST_F(ModelStoreTest, LoadsNothingOnceItStopsAccepting) {
  const auto model = store_.Load("models/tiny", checkpoints().one).value();
  store_.StopAccepting();
  EXPECT_EQ(Load("models/other", checkpoints().two).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(model->engine().Submit(Request(), [] {}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_TRUE(store_.AwaitIdle(Soon()));
}

}  // namespace
}  // namespace gla::inference
