// gla: the command line of the trainer and inference services. `gla help`.
#include <string>
#include <vector>

#include "glog/logging.h"
#include "tools/cli/command.h"
#include "tools/cli/data_commands.h"
#include "tools/cli/inference_commands.h"
#include "tools/cli/train_commands.h"
#include "tools/forward.h"

namespace gla::cli {
namespace {

absl::Status Forward(const Arguments& arguments, ExitCode*) {
  for (const char* flag : {"model", "input", "output"}) {
    if (!arguments.Has(flag)) {
      return absl::InvalidArgumentError(std::string("--") + flag +
                                        " is missing; `gla help forward`");
    }
  }
  return RunForward({.model = arguments.Get("model"),
                     .input = arguments.Get("input"),
                     .output = arguments.Get("output"),
                     .gradients = arguments.Has("gradients"),
                     .device = arguments.Get("device")});
}

Command ForwardCommand() {
  return {.verb = "forward",
          .summary = "run a checkpoint on given tokens, to verify a port",
          .flags = {{"model", "DIRECTORY", "", "checkpoint or model directory"},
                    {"input", "IN.safetensors", "", "holds tokens [B,T] int32"},
                    {"output", "OUT.safetensors", "",
                     "gets logits, loss, state.I and grad.NAME"},
                    {"gradients", "", "", "also write gradients"},
                    {"device", "cpu|cuda", "cpu", "where to compute"}},
          .example =
              "gla forward --model=tiny --input=in.safetensors "
              "--output=out.safetensors --gradients",
          .run = Forward};
}

int Main(int argc, char** argv) {
  std::vector<Command> commands = TrainCommands();
  for (auto& more : {DataCommands(), InferenceCommands()}) {
    commands.insert(commands.end(), more.begin(), more.end());
  }
  commands.push_back(ForwardCommand());
  return RunCommandLine(commands,
                        std::vector<std::string>(argv + 1, argv + argc));
}

}  // namespace
}  // namespace gla::cli

int main(int argc, char** argv) {
  google::InitGoogleLogging(argv[0]);
  FLAGS_logtostderr = true;
  return gla::cli::Main(argc, argv);
}
