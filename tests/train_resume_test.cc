// A run that is interrupted and resumed gives the bits of one that is not.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/checkpoint/checkpoint.h"
#include "model/parameters.h"
#include "model/tokenizer/tokenizer.h"
#include "trainer_service/testing/tiny_job.h"
#include "trainer_service/trainer.h"

namespace gla::trainer {
namespace {

constexpr int kSteps = 6;  // a whole run is twice as many

// Loss and weights after a whole run.
struct Result {
  std::vector<double> losses;  // of the steps that this trainer did
  std::vector<float> weights;
  friend bool operator==(const Result&, const Result&) = default;
};

TrainerOptions Options(const std::string& dataset,
                       const std::string& directory) {
  return {.spec = ResolvedTinyJobSpec(dataset, 2 * kSteps),
          .job = "jobs/resume",
          .directory = directory,
          .attempt = 1,
          .must_resume = false,
          .observer = nullptr};
}

std::unique_ptr<Trainer> Make(const TrainerOptions& options) {
  auto trainer = Trainer::Create(options);
  EXPECT_TRUE(trainer.ok()) << trainer.status();
  return *std::move(trainer);
}

Result TrainTo(int64_t step, Trainer* trainer) {
  Result result;
  while (trainer->step() < step) {
    EXPECT_TRUE(trainer->Step().ok());
    result.losses.push_back(trainer->progress().loss());
  }
  const auto weights = trainer->weights().flat();
  result.weights.assign(weights.data(), weights.data() + weights.size());
  return result;
}

// The second half of a run.
Result Tail(const Result& result) {
  return {{result.losses.end() - kSteps, result.losses.end()}, result.weights};
}

TEST(TrainResume, TwoHalvesAreTheWholeBitForBit) {
  const std::string folder = FreshFolder("halves");
  const std::string dataset = MakeTinyDataset(folder + "/dataset");
  const std::string whole_folder = FreshFolder("halves/whole");
  const std::string parts_folder = FreshFolder("halves/parts");
  const Result whole =
      TrainTo(2 * kSteps, Make(Options(dataset, whole_folder)).get());

  const TrainerOptions options = Options(dataset, parts_folder);
  {
    auto first = Make(options);
    TrainTo(kSteps, first.get());
    ASSERT_TRUE(first->SaveCheckpoint().ok());
    // Steps after the checkpoint are lost with the process.
    TrainTo(kSteps + 2, first.get());
  }
  auto second = Make(options);
  EXPECT_EQ(second->step(), kSteps);
  EXPECT_EQ(TrainTo(2 * kSteps, second.get()), Tail(whole));
}

// The negative control: the comparison above can fail. With betas of zero and a
// constant learning rate the step number has no part but to choose the data.
TEST(TrainResume, DataOffByOneIsSeen) {
  const std::string folder = FreshFolder("control");
  TrainerOptions options = Options(MakeTinyDataset(folder + "/dataset"),
                                   FreshFolder("control/whole"));
  v1::OptimizerSpec* optimizer = options.spec.mutable_optimizer();
  optimizer->set_beta1(0);
  optimizer->set_beta2(0);
  optimizer->set_warmup_steps(0);
  optimizer->set_min_learning_rate(optimizer->learning_rate());
  const Result whole = TrainTo(2 * kSteps, Make(options).get());

  for (int off : {0, 1}) {
    options.directory = FreshFolder(off == 0 ? "control/right" : "control/off");
    auto first = Make(options);
    TrainTo(kSteps, first.get());
    ASSERT_TRUE(first->SaveCheckpoint().ok());
    const std::string root = options.directory + "/checkpoints";
    if (off != 0) {
      // The same weights and moments, the cursor one batch further.
      const auto config = GlaConfig::FromProto(options.spec.model());
      const ParameterTable table(*config);
      Parameters weights(&table), m(&table), v(&table);
      auto state =
          LoadTrainingState(ListCheckpoints(root)->back(), &weights, &m, &v);
      ASSERT_TRUE(state.ok()) << state.status();
      state->set_step(state->step() + off);
      const auto tokenizer = MakeByteTokenizer();
      CheckpointContents contents;
      contents.config = &*config;
      contents.weights = &weights;
      contents.adam_m = &m;
      contents.adam_v = &v;
      contents.tokenizer = tokenizer.get();
      contents.train_state = *state;
      ASSERT_TRUE(CommitCheckpoint(root, contents).ok());
    }
    auto second = Make(options);
    const Result tail = TrainTo(2 * kSteps + off, second.get());
    EXPECT_EQ(tail == Tail(whole), off == 0);
  }
}

// Trains with a checkpoint each step. Says each step's loss and waits for a
// byte before it goes on.
[[noreturn]] void TrainStepByStep(TrainerOptions options, int told,
                                  int allowed) {
  options.spec.mutable_checkpoints()->set_every_steps(1);
  class Teller : public TrainerObserver {
   public:
    Teller(int told, int allowed) : told_(told), allowed_(allowed) {}
    void OnProgress(const v1::Progress& progress) override {
      const double loss = progress.loss();
      if (write(told_, &loss, sizeof(loss)) < 0) _exit(1);
      char byte;
      if (read(allowed_, &byte, 1) != 1) _exit(1);
    }

   private:
    const int told_, allowed_;
  } teller(told, allowed);
  options.observer = &teller;
  auto trainer = Trainer::Create(options);
  if (!trainer.ok() || !(*trainer)->Run().ok()) _exit(1);
  _exit(0);
}

TEST(TrainResume, KillNineMidStepContinuesFromTheLastCheckpoint) {
  const std::string folder = FreshFolder("kill");
  const std::string dataset = MakeTinyDataset(folder + "/dataset");
  const Result whole =
      TrainTo(2 * kSteps, Make(Options(dataset, FreshFolder("kill/w"))).get());

  const TrainerOptions options = Options(dataset, FreshFolder("kill/k"));
  for (int round = 0; round < 3; ++round) {
    int told[2], allowed[2];
    ASSERT_EQ(pipe(told), 0);
    ASSERT_EQ(pipe(allowed), 0);
    const pid_t child = fork();
    if (child == 0) {
      close(allowed[1]);  // so that it ends with its parent
      TrainStepByStep(options, told[1], allowed[0]);
    }
    close(told[1]);
    close(allowed[0]);
    // After two more losses: somewhere in a commit or the step after it, at
    // whose end the child waits in vain.
    double loss;
    for (int i = 0; i < 2; ++i) {
      ASSERT_EQ(read(told[0], &loss, sizeof(loss)),
                static_cast<ssize_t>(sizeof(loss)));
      ASSERT_EQ(write(allowed[1], "", 1), 1);
    }
    usleep(round * 1500);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    close(told[0]);
    close(allowed[1]);
  }
  auto last = Make(options);
  EXPECT_GE(last->step(), 3);
  const int64_t resumed = last->step();
  const Result rest = TrainTo(2 * kSteps, last.get());
  EXPECT_EQ(rest.weights, whole.weights);
  EXPECT_EQ(rest.losses, std::vector<double>(whole.losses.begin() + resumed,
                                             whole.losses.end()));
}

}  // namespace
}  // namespace gla::trainer
