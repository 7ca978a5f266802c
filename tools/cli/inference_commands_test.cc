#include "tools/cli/inference_commands.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tools/cli/command.h"

namespace gla::cli {
namespace {

TEST(ModelsLoad, RefusesAnEmptyPathBeforeItCallsTheService) {
  EXPECT_EQ(RunCommandLine(InferenceCommands(),
                           std::vector<std::string>{"models", "load", "x", ""}),
            kUsage);
}

}  // namespace
}  // namespace gla::cli
