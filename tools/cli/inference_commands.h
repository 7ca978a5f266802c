// `gla models ...` and `gla generate`: the client of the inference service.
#ifndef GLA_TOOLS_CLI_INFERENCE_COMMANDS_H_
#define GLA_TOOLS_CLI_INFERENCE_COMMANDS_H_

#include <vector>

#include "tools/cli/command.h"

namespace gla::cli {

std::vector<Command> InferenceCommands();

}  // namespace gla::cli

#endif  // GLA_TOOLS_CLI_INFERENCE_COMMANDS_H_
