#include "trainer_service/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numbers>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/model_directory.h"
#include "trainer_service/data/data_loader.h"
#include "trainer_service/failure.h"
#include "trainer_service/testing/tiny_job.h"

namespace gla::trainer {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using v1::Failure;

// Records everything; stops as told.
class Recorder : public TrainerObserver {
 public:
  void OnQuarantined(const std::string& directory,
                     const std::string& /*why*/) override {
    quarantined.push_back(directory);
  }
  void OnProgress(const v1::Progress& progress) override {
    if (progress.step() == stop_at_step) request = stop_with;
  }
  void OnCheckpoint(const CommittedCheckpoint& checkpoint) override {
    checkpoints.push_back(checkpoint);
  }
  StopRequest stop_request() const override { return request; }

  int64_t stop_at_step = -1;
  StopRequest stop_with = StopRequest::kSaveAndStop;
  StopRequest request = StopRequest::kNone;
  std::vector<std::string> quarantined;
  std::vector<CommittedCheckpoint> checkpoints;
};

class TrainerTest : public testing::Test {
 protected:
  TrainerTest()
      : folder_(FreshFolder(
            testing::UnitTest::GetInstance()->current_test_info()->name())),
        dataset_(MakeTinyDataset(folder_ + "/dataset")) {}

  TrainerOptions Options(int steps) {
    return {.spec = ResolvedTinyJobSpec(dataset_, steps),
            .job = "jobs/tiny",
            .directory = folder_,
            .attempt = 1,
            .must_resume = false,
            .observer = &recorder_};
  }
  std::unique_ptr<Trainer> Make(const TrainerOptions& options) {
    auto trainer = Trainer::Create(options);
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    return *std::move(trainer);
  }
  std::string Root() const { return folder_ + "/checkpoints"; }

  void FlipAByte(const std::string& path) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(100);
    const int byte = file.get();
    file.seekp(100);
    file.put(static_cast<char>(byte ^ 1));
  }

  const std::string folder_;
  const std::string dataset_;
  Recorder recorder_;
};

TEST_F(TrainerTest, LearnsAndCommitsTheLastStepWithItsLoss) {
  auto trainer = Make(Options(60));
  ASSERT_TRUE(trainer->Step().ok());
  const double first_loss = trainer->progress().loss();
  EXPECT_NEAR(first_loss, std::log(256), 0.2);
  const auto done = trainer->Run();
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(*done);
  EXPECT_EQ(trainer->step(), 60);
  EXPECT_EQ(trainer->progress().tokens(), 60 * 4 * 32);
  EXPECT_LT(trainer->progress().loss(), first_loss - 1);
  EXPECT_LT(trainer->progress().evaluation_loss(), first_loss - 1);
  ASSERT_THAT(recorder_.checkpoints, SizeIs(1));
  const CommittedCheckpoint& committed = recorder_.checkpoints[0];
  EXPECT_EQ(committed.step, 60);
  EXPECT_GT(committed.size_bytes, 100000);
  EXPECT_EQ(*committed.evaluation_loss, trainer->progress().evaluation_loss());
  EXPECT_EQ(committed.directory, Root() + "/step-000000000060");
  const auto manifest = VerifyCheckpoint(committed.directory);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->job(), "jobs/tiny");
  EXPECT_EQ(manifest->evaluation_loss(), trainer->progress().evaluation_loss());
}

TEST_F(TrainerTest, EvaluationIsTheLossOfEveryHeldOutToken) {
  auto trainer = Make(Options(4));
  ASSERT_TRUE(*trainer->Run());
  // By hand from the checkpoint, one row at a time.
  const auto model = LoadModelDirectory(recorder_.checkpoints[0].directory);
  ASSERT_TRUE(model.ok()) << model.status();
  const GlaModel gla(model->config, model->parameters.get());
  ThreadPool threads(1);
  Arena arena;
  const ExecutionContext ctx{.device = Device::kCpu,
                             .threads = &threads,
                             .scratch = &arena,
                             .stream = nullptr};
  const auto dataset = *Dataset::Open(dataset_);
  const TokenStream& text = dataset->validation();
  double nats = 0;
  for (int64_t begin = 0; begin + 1 < text.size(); begin += 32) {
    const int64_t n = std::min<int64_t>(32, text.size() - 1 - begin);
    std::vector<int32_t> tokens(n), labels(n);
    text.Read(begin, absl::MakeSpan(tokens));
    text.Read(begin + 1, absl::MakeSpan(labels));
    std::vector<float> loss(n);
    GlaModel::LossArgs args;
    args.tokens = TensorView<const int32_t, 2>(tokens.data(), {1, n});
    args.labels = TensorView<const int32_t, 2>(labels.data(), {1, n});
    args.loss = TensorView<float, 2>(loss.data(), {1, n});
    gla.Loss(ctx, args);
    for (float nat : loss) nats += nat;
  }
  EXPECT_NEAR(trainer->progress().evaluation_loss(), nats / (text.size() - 1),
              1e-6);
  // The first token costs log2(256) bits.
  EXPECT_NEAR(trainer->progress().evaluation_bits_per_byte(),
              (nats / std::numbers::ln2 + 8) / text.text_bytes(), 1e-6);
}

TEST_F(TrainerTest, MicroBatchesDoNotChangeWhatIsLearned) {
  TrainerOptions options = Options(3);
  auto parts = Make(options);
  options.spec.mutable_data()->set_micro_batch_sequences(4);
  auto whole = Make(options);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(parts->Step().ok());
    ASSERT_TRUE(whole->Step().ok());
    EXPECT_NEAR(parts->progress().loss(), whole->progress().loss(), 1e-5);
    EXPECT_NEAR(parts->progress().grad_norm(), whole->progress().grad_norm(),
                1e-4);
  }
}

TEST_F(TrainerTest, AllocatesNothingAfterTheFirstStep) {
  auto trainer = Make(Options(10));
  ASSERT_TRUE(trainer->Step().ok());
  const int64_t bytes = trainer->scratch_bytes();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(trainer->Step().ok());
  EXPECT_EQ(trainer->scratch_bytes(), bytes);
}

TEST_F(TrainerTest, StopsBeforeTheUpdateWhenNumbersAreNotFinite) {
  TrainerOptions options = Options(50);
  options.spec.mutable_optimizer()->set_learning_rate(100);
  options.spec.mutable_optimizer()->set_min_learning_rate(100);
  options.spec.mutable_optimizer()->set_warmup_steps(0);
  options.spec.mutable_optimizer()->set_weight_decay(100);
  auto trainer = Make(options);
  std::vector<float> before;
  absl::Status status;
  while (status.ok() && trainer->step() < 50) {
    const auto weights = trainer->weights().flat();
    before.assign(weights.data(), weights.data() + weights.size());
    status = trainer->Step();
  }
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(ToFailure(status).reason(), Failure::NONFINITE);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("step ", trainer->step() + 1, ": loss")));
  const auto weights = trainer->weights().flat();
  EXPECT_EQ(0, std::memcmp(before.data(), weights.data(),
                           before.size() * sizeof(float)));
}

TEST_F(TrainerTest, SavesEveryNStepsAndKeepsTheNewest) {
  TrainerOptions options = Options(10);
  options.spec.mutable_checkpoints()->set_every_steps(3);
  options.spec.mutable_checkpoints()->set_keep_latest(2);
  options.spec.mutable_evaluation()->set_every_steps(6);
  ASSERT_TRUE(*Make(options)->Run());
  std::vector<int64_t> steps;
  for (const auto& checkpoint : recorder_.checkpoints) {
    steps.push_back(checkpoint.step);
    EXPECT_EQ(checkpoint.evaluation_loss.has_value(),
              checkpoint.step == 6 || checkpoint.step == 10);
  }
  EXPECT_THAT(steps, testing::ElementsAre(3, 6, 9, 10));
  EXPECT_THAT(*ListCheckpoints(Root()),
              testing::ElementsAre(Root() + "/step-000000000009",
                                   Root() + "/step-000000000010"));
}

TEST_F(TrainerTest, StopSavesTheStepItReached) {
  recorder_.stop_at_step = 4;
  auto trainer = Make(Options(10));
  EXPECT_FALSE(*trainer->Run());
  EXPECT_EQ(trainer->step(), 4);
  ASSERT_THAT(recorder_.checkpoints, SizeIs(1));
  EXPECT_EQ(recorder_.checkpoints[0].step, 4);

  recorder_ = Recorder();
  auto resumed = Make(Options(10));
  EXPECT_EQ(resumed->step(), 4);
  EXPECT_TRUE(*resumed->Run());
  EXPECT_EQ(resumed->step(), 10);
}

TEST_F(TrainerTest, StopWithoutSavingLeavesNothing) {
  recorder_.stop_at_step = 4;
  recorder_.stop_with = StopRequest::kStop;
  EXPECT_FALSE(*Make(Options(10))->Run());
  EXPECT_THAT(recorder_.checkpoints, IsEmpty());
}

TEST_F(TrainerTest, AResumedRunThatIsDoneOnlyEvaluates) {
  ASSERT_TRUE(*Make(Options(5))->Run());
  const CommittedCheckpoint committed = recorder_.checkpoints[0];
  recorder_ = Recorder();
  auto again = Make(Options(5));
  EXPECT_EQ(again->progress().evaluation_loss(), *committed.evaluation_loss);
  EXPECT_TRUE(*again->Run());
  // Told once more: the first attempt may have died before it could.
  ASSERT_THAT(recorder_.checkpoints, SizeIs(1));
  EXPECT_EQ(recorder_.checkpoints[0].directory, committed.directory);
  EXPECT_EQ(recorder_.checkpoints[0].step, 5);
  EXPECT_EQ(recorder_.checkpoints[0].size_bytes, committed.size_bytes);
  EXPECT_EQ(recorder_.checkpoints[0].evaluation_loss,
            committed.evaluation_loss);
}

TEST_F(TrainerTest, FallsBackToAnOlderCheckpointWhenTheNewestIsDamaged) {
  TrainerOptions options = Options(6);
  options.spec.mutable_checkpoints()->set_every_steps(2);
  ASSERT_TRUE(*Make(options)->Run());
  FlipAByte(Root() + "/step-000000000006/model.safetensors");
  auto trainer = Make(options);
  EXPECT_EQ(trainer->step(), 4);
  ASSERT_THAT(recorder_.quarantined, SizeIs(1));
  EXPECT_THAT(recorder_.quarantined[0], HasSubstr("/quarantine/"));
  EXPECT_TRUE(std::filesystem::exists(recorder_.quarantined[0]));
  EXPECT_TRUE(*trainer->Run());
}

TEST_F(TrainerTest, NeverStartsOverWhenAllCheckpointsAreDamaged) {
  ASSERT_TRUE(*Make(Options(3))->Run());
  std::filesystem::remove(Root() + "/step-000000000003/MANIFEST");
  const auto trainer = Trainer::Create(Options(3));
  EXPECT_EQ(ToFailure(trainer.status()).reason(), Failure::CHECKPOINT_CORRUPT);
  // Neither when they are gone altogether.
  TrainerOptions options = Options(3);
  options.must_resume = true;
  EXPECT_EQ(ToFailure(Trainer::Create(options).status()).reason(),
            Failure::CHECKPOINT_CORRUPT);
}

TEST_F(TrainerTest, RefusesADatasetThatChangedSinceTheCheckpoint) {
  ASSERT_TRUE(*Make(Options(3))->Run());
  std::filesystem::remove_all(dataset_);
  MakeTinyDataset(dataset_);
  std::ofstream(dataset_ + "/manifest.json", std::ios::app) << "\n";
  const auto trainer = Trainer::Create(Options(3));
  EXPECT_EQ(ToFailure(trainer.status()).reason(), Failure::DATA);
  EXPECT_THAT(std::string(trainer.status().message()), HasSubstr("changed"));
}

TEST_F(TrainerTest, RefusesADatasetThatIsMissing) {
  const TrainerOptions options = Options(3);
  std::filesystem::remove_all(dataset_);
  EXPECT_EQ(ToFailure(Trainer::Create(options).status()).reason(),
            Failure::DATA);
}

TEST_F(TrainerTest, WritesARowPerStepAndEvaluation) {
  ASSERT_TRUE(*Make(Options(3))->Run());
  std::ifstream file(folder_ + "/metrics.jsonl");
  std::vector<std::string> rows;
  for (std::string row; std::getline(file, row);) rows.push_back(row);
  ASSERT_THAT(rows, SizeIs(4));
  EXPECT_THAT(rows[2], HasSubstr("{\"step\":3,\"attempt\":1,\"loss\":"));
  EXPECT_THAT(rows[3], HasSubstr("\"evaluation_bits_per_byte\":"));
}

}  // namespace
}  // namespace gla::trainer
