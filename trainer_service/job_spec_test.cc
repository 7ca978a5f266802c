#include "trainer_service/job_spec.h"

#include <cmath>
#include <functional>
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "trainer_service/testing/tiny_job.h"

namespace gla::trainer {
namespace {

using testing::HasSubstr;

constexpr Machine kMachine = {.threads = 4, .memory_bytes = int64_t{1} << 33};

const Dataset& TinyDataset() {
  static const Dataset& dataset = *[] {
    auto opened = Dataset::Open(MakeTinyDataset(FreshFolder("job_spec")));
    return opened->release();
  }();
  return dataset;
}

v1::JobSpec Spec() { return TinyJobSpec(TinyDataset().directory(), 100); }

TEST(ResolveJobSpec, FillsInEveryDefault) {
  v1::JobSpec spec;
  spec.mutable_data()->set_dataset(TinyDataset().directory());
  spec.set_total_steps(200);
  spec.mutable_model()->set_hidden_size(64);
  spec.mutable_model()->set_num_hidden_layers(2);
  const auto resolved = ResolveJobSpec(spec, TinyDataset(), kMachine);
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  EXPECT_EQ(resolved->model().vocab_size(), 256);
  EXPECT_EQ(resolved->model().num_heads(), 4);
  EXPECT_EQ(resolved->data().sequence_length(), 512);
  EXPECT_EQ(resolved->data().batch_sequences(), 8);
  EXPECT_EQ(resolved->data().micro_batch_sequences(), 8);
  const v1::OptimizerSpec& optimizer = resolved->optimizer();
  EXPECT_DOUBLE_EQ(optimizer.learning_rate(), 1e-3);
  EXPECT_DOUBLE_EQ(optimizer.min_learning_rate(), 1e-4);
  EXPECT_EQ(optimizer.warmup_steps(), 10);
  EXPECT_DOUBLE_EQ(optimizer.weight_decay(), 0.1);
  EXPECT_DOUBLE_EQ(optimizer.beta1(), 0.9);
  EXPECT_DOUBLE_EQ(optimizer.beta2(), 0.95);
  EXPECT_DOUBLE_EQ(optimizer.eps(), 1e-8);
  EXPECT_DOUBLE_EQ(optimizer.max_grad_norm(), 1.0);
  EXPECT_EQ(resolved->evaluation().sequence_length(), 512);
  EXPECT_EQ(resolved->checkpoints().keep_latest(), 3);
  EXPECT_EQ(resolved->threads(), 4);
  EXPECT_EQ(resolved->max_restarts_without_progress(), 3);
  // What is resolved stays as it is.
  const auto again = ResolveJobSpec(*resolved, TinyDataset(), kMachine);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->SerializeAsString(), resolved->SerializeAsString());
}

TEST(ResolveJobSpec, KeepsWhatTheUserSet) {
  v1::JobSpec spec = Spec();
  spec.mutable_optimizer()->set_min_learning_rate(0);
  spec.mutable_optimizer()->set_warmup_steps(0);
  spec.mutable_optimizer()->set_weight_decay(0);
  spec.mutable_optimizer()->set_max_grad_norm(0);
  spec.set_max_restarts_without_progress(0);
  const auto resolved = ResolveJobSpec(spec, TinyDataset(), kMachine);
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  EXPECT_EQ(resolved->optimizer().min_learning_rate(), 0);
  EXPECT_EQ(resolved->optimizer().warmup_steps(), 0);
  EXPECT_EQ(resolved->optimizer().weight_decay(), 0);
  EXPECT_EQ(resolved->optimizer().max_grad_norm(), 0);
  EXPECT_EQ(resolved->max_restarts_without_progress(), 0);
  EXPECT_EQ(resolved->data().micro_batch_sequences(), 2);
}

// A change that makes a good spec bad, and what the refusal says.
struct BadSpec {
  const char* name;
  std::function<void(v1::JobSpec*)> change;
  const char* message;
};

class BadSpecTest : public testing::TestWithParam<BadSpec> {};

TEST_P(BadSpecTest, IsRefusedByFieldAndValue) {
  v1::JobSpec spec = Spec();
  ASSERT_TRUE(ResolveJobSpec(spec, TinyDataset(), kMachine).ok());
  GetParam().change(&spec);
  const auto resolved = ResolveJobSpec(spec, TinyDataset(), kMachine);
  EXPECT_EQ(resolved.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(resolved.status().message()),
              HasSubstr(GetParam().message));
}

const BadSpec kBadSpecs[] = {
    {"NoSteps", [](auto* s) { s->set_total_steps(0); },
     "spec.total_steps: want 1 to"},
    {"NegativeSteps", [](auto* s) { s->set_total_steps(-5); }, "got -5"},
    {"SequenceLength",
     [](auto* s) { s->mutable_data()->set_sequence_length(-3); },
     "spec.data.sequence_length: want 1 to 1048576, got -3"},
    {"DatasetTooShort",
     [](auto* s) { s->mutable_data()->set_sequence_length(100000); },
     "spec.data.sequence_length: want less than the "},
    {"BatchSequences",
     [](auto* s) { s->mutable_data()->set_batch_sequences(-1); },
     "spec.data.batch_sequences: want 1 to"},
    {"MicroBatchDoesNotDivide",
     [](auto* s) { s->mutable_data()->set_micro_batch_sequences(3); },
     "spec.data.micro_batch_sequences: want a divisor of batch_sequences 4, "
     "got 3"},
    {"MicroBatchNegative",
     [](auto* s) { s->mutable_data()->set_micro_batch_sequences(-2); },
     "got -2"},
    {"VocabSize", [](auto* s) { s->mutable_model()->set_vocab_size(32000); },
     "spec.model.vocab_size: want 256 (the tokenizer's of dataset"},
    {"VocabSizeGot", [](auto* s) { s->mutable_model()->set_vocab_size(32000); },
     "got 32000"},
    {"HiddenSize", [](auto* s) { s->mutable_model()->set_hidden_size(0); },
     "spec.model.hidden_size"},
    {"HeadsDoNotDivide", [](auto* s) { s->mutable_model()->set_num_heads(7); },
     "spec.model."},
    {"LearningRate",
     [](auto* s) { s->mutable_optimizer()->set_learning_rate(-1); },
     "spec.optimizer.learning_rate: want"},
    {"LearningRateNan",
     [](auto* s) { s->mutable_optimizer()->set_learning_rate(NAN); },
     "spec.optimizer.learning_rate: want"},
    {"FloorAbovePeak",
     [](auto* s) { s->mutable_optimizer()->set_min_learning_rate(1); },
     "spec.optimizer.min_learning_rate: want 0 to 0.003, got 1"},
    {"WarmupBeyondTheEnd",
     [](auto* s) { s->mutable_optimizer()->set_warmup_steps(101); },
     "spec.optimizer.warmup_steps: want 0 to 100, got 101"},
    {"WeightDecay",
     [](auto* s) { s->mutable_optimizer()->set_weight_decay(-0.1); },
     "spec.optimizer.weight_decay"},
    {"Beta1", [](auto* s) { s->mutable_optimizer()->set_beta1(1); },
     "spec.optimizer.beta1"},
    {"Beta2", [](auto* s) { s->mutable_optimizer()->set_beta2(1.5); },
     "spec.optimizer.beta2"},
    {"Eps", [](auto* s) { s->mutable_optimizer()->set_eps(0); },
     "spec.optimizer.eps"},
    {"MaxGradNorm",
     [](auto* s) { s->mutable_optimizer()->set_max_grad_norm(-1); },
     "spec.optimizer.max_grad_norm"},
    {"EvaluationSteps",
     [](auto* s) { s->mutable_evaluation()->set_every_steps(-1); },
     "spec.evaluation.every_steps"},
    {"EvaluationLength",
     [](auto* s) { s->mutable_evaluation()->set_sequence_length(-1); },
     "spec.evaluation.sequence_length"},
    {"CheckpointSteps",
     [](auto* s) { s->mutable_checkpoints()->set_every_steps(-1); },
     "spec.checkpoints.every_steps"},
    {"KeepLatest",
     [](auto* s) { s->mutable_checkpoints()->set_keep_latest(1); },
     "spec.checkpoints.keep_latest: want 2 to"},
    {"MoreThreadsThanTheMachineHas", [](auto* s) { s->set_threads(5); },
     "spec.threads: want 1 to 4, got 5"},
    {"NegativeThreads", [](auto* s) { s->set_threads(-1); },
     "spec.threads: want 1 to 4, got -1"},
    {"Restarts", [](auto* s) { s->set_max_restarts_without_progress(-1); },
     "spec.max_restarts_without_progress"},
    {"UnknownField",
     [](auto* s) { s->mutable_data()->ParseFromString("\xf8\x3f\x01"); },
     "spec.data: unknown field number 1023"},
    {"Memory",
     [](auto* s) {
       s->mutable_model()->set_hidden_size(4096);
       s->mutable_model()->set_num_hidden_layers(32);
     },
     "MB of memory"},
    {"MemoryOfActivations",
     [](auto* s) {
       s->mutable_data()->set_batch_sequences(1 << 20);
       s->mutable_data()->set_micro_batch_sequences(1 << 20);
       s->mutable_data()->set_sequence_length(4096);
     },
     "MB of memory"},
};

INSTANTIATE_TEST_SUITE_P(All, BadSpecTest, testing::ValuesIn(kBadSpecs),
                         [](const auto& info) { return info.param.name; });

TEST(OpenDataset, NamesAPathThatCannotBe) {
  v1::JobSpec spec;
  auto opened = OpenDataset(spec);
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(opened.status().message()),
              HasSubstr("spec.data.dataset: want an absolute path, got \"\""));
  spec.mutable_data()->set_dataset("relative/path");
  EXPECT_THAT(std::string(OpenDataset(spec).status().message()),
              HasSubstr("\"relative/path\""));
}

TEST(OpenDataset, NamesADatasetThatIsMissing) {
  v1::JobSpec spec;
  spec.mutable_data()->set_dataset("/nowhere/dataset");
  const auto opened = OpenDataset(spec);
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(opened.status().message()),
              testing::AllOf(HasSubstr("spec.data.dataset: "),
                             HasSubstr("/nowhere/dataset")));
}

}  // namespace
}  // namespace gla::trainer
