// `gla train ...`: the client of the trainer service.
#ifndef GLA_TOOLS_CLI_TRAIN_COMMANDS_H_
#define GLA_TOOLS_CLI_TRAIN_COMMANDS_H_

#include <vector>

#include "tools/cli/command.h"

namespace gla::cli {

std::vector<Command> TrainCommands();

}  // namespace gla::cli

#endif  // GLA_TOOLS_CLI_TRAIN_COMMANDS_H_
