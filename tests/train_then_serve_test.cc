// The trainer's checkpoint, seen by everything that reads checkpoints: the loss
// that the trainer reported is the loss that `gla forward` computes, and the
// inference service streams the tokens that the model itself chooses.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gla/inference/v1/inference.grpc.pb.h"
#include "gtest/gtest.h"
#include "inference_service/model_store.h"
#include "inference_service/server.h"
#include "kernels/testing/test_context.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/model_directory.h"
#include "model/checkpoint/safetensors.h"
#include "model/decode_states.h"
#include "model/gla_model.h"
#include "tools/forward.h"
#include "trainer_service/data/dataset.h"
#include "trainer_service/testing/tiny_job.h"
#include "trainer_service/trainer.h"

namespace gla {
namespace {

constexpr int kSteps = 30;

// A finished run, made once.
struct Run {
  std::string folder, checkpoint;
  double evaluation_loss = 0;
  int32_t evaluation_length = 0;
};
const Run& Trained() {
  static const Run& run = *[] {
    auto* made = new Run;
    made->folder = trainer::FreshFolder("train_then_serve");
    const auto spec = trainer::ResolvedTinyJobSpec(
        trainer::MakeTinyDataset(made->folder + "/dataset"), kSteps);
    auto trainer = trainer::Trainer::Create(
        {.spec = spec, .job = "jobs/tiny", .directory = made->folder});
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    const auto finished = (*trainer)->Run();
    EXPECT_TRUE(finished.ok() && *finished) << finished.status();
    made->evaluation_loss = (*trainer)->progress().evaluation_loss();
    made->evaluation_length = spec.evaluation().sequence_length();
    made->checkpoint = ListCheckpoints(made->folder + "/checkpoints")->back();
    return made;
  }();
  return run;
}

// The loss of `gla forward` on `rows` rows of tokens.
double ForwardLoss(const std::vector<int32_t>& tokens, int64_t rows) {
  const std::string input = Trained().folder + "/in.safetensors";
  const std::string output = Trained().folder + "/out.safetensors";
  std::remove(input.c_str());
  SafetensorsWriter writer;
  writer.AddInt32("tokens", {rows, static_cast<int64_t>(tokens.size()) / rows},
                  tokens.data());
  EXPECT_TRUE(writer.Write(input).ok());
  const absl::Status ran = RunForward(
      {.model = Trained().checkpoint, .input = input, .output = output});
  EXPECT_TRUE(ran.ok()) << ran;
  const auto reader = SafetensorsReader::Open(output);
  float loss = 0;
  EXPECT_TRUE(ReadAsFloat(**(*reader)->Find("loss"), {&loss, 1}).ok());
  return loss;
}

TEST(TrainThenServe, TrainersEvaluationIsTheLossOfForward) {
  const auto dataset = Dataset::Open(Trained().folder + "/dataset");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  const TokenStream& stream = (*dataset)->validation();
  const int64_t length = Trained().evaluation_length;
  const int64_t rows = (stream.size() - 1) / length;
  ASSERT_GE(rows, 2);

  // Row r predicts tokens r * length + 1 to (r + 1) * length; what is left over
  // makes a shorter row of its own.
  std::vector<int32_t> whole(rows * (length + 1));
  for (int64_t row = 0; row < rows; ++row) {
    stream.Read(row * length,
                {&whole[row * (length + 1)], static_cast<size_t>(length + 1)});
  }
  double total = ForwardLoss(whole, rows) * static_cast<double>(rows * length);
  std::vector<int32_t> rest(stream.size() - rows * length);
  stream.Read(rows * length, absl::MakeSpan(rest));
  if (rest.size() >= 2) {
    total += ForwardLoss(rest, 1) * static_cast<double>(rest.size() - 1);
  }
  const double loss = total / static_cast<double>(stream.size() - 1);
  EXPECT_NEAR(Trained().evaluation_loss, loss, 1e-5 * loss);
}

// What the model itself says after `prompt`, greedily.
std::vector<int32_t> GreedyContinuation(const std::string& prompt, int count) {
  const auto loaded = LoadModelDirectory(Trained().checkpoint);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  const GlaModel model(loaded->config, loaded->parameters.get());
  TestContext context;
  DecodeStates states(loaded->config, 1);
  const int64_t vocab_size = loaded->config.vocab_size;
  std::vector<float> logits(vocab_size);
  const std::vector<int32_t> tokens(prompt.begin(), prompt.end());
  model.Prefill(context.ctx(), tokens, 0, &states,
                {logits.data(), {vocab_size}});
  std::vector<int32_t> output;
  while (true) {
    output.push_back(static_cast<int32_t>(
        std::max_element(logits.begin(), logits.end()) - logits.begin()));
    if (static_cast<int>(output.size()) == count) return output;
    model.DecodeStep(context.ctx(), {output.back()}, {0}, &states,
                     {logits.data(), {1, vocab_size}});
  }
}

TEST(TrainThenServe, ServiceStreamsTheModelsOwnContinuation) {
  inference::ModelStore models({.state_slots = 2, .threads = 2});
  const auto loaded = models.Load("models/tiny", Trained().checkpoint);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const auto server = inference::Server::Start("127.0.0.1:0", &models);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = inference::v1::GenerationService::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", (*server)->port()),
                          grpc::InsecureChannelCredentials()));
  inference::v1::GenerateRequest request;
  request.mutable_prompt()->set_text("line 12 says ");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_new_tokens(40);
  request.mutable_sampling()->set_ignore_eos(true);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request);
  inference::v1::GenerateResponse response;
  std::vector<int32_t> tokens;
  bool finished = false;
  while (reader->Read(&response)) {
    for (int32_t id : response.delta().token_ids()) tokens.push_back(id);
    finished |= response.has_finished();
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(finished);
  EXPECT_EQ(tokens, GreedyContinuation("line 12 says ", 40));
  (*server)->Shutdown(absl::ZeroDuration());
}

}  // namespace
}  // namespace gla
