// `gla data ...`: from text to what a job trains on. Needs no service.
#ifndef GLA_TOOLS_CLI_DATA_COMMANDS_H_
#define GLA_TOOLS_CLI_DATA_COMMANDS_H_

#include <vector>

#include "tools/cli/command.h"

namespace gla::cli {

std::vector<Command> DataCommands();

}  // namespace gla::cli

#endif  // GLA_TOOLS_CLI_DATA_COMMANDS_H_
