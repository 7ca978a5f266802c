#include "kernels/base/execution_context.h"

#include "gtest/gtest.h"

namespace gla {
namespace {

TEST(DeviceWorkspaceTest, IsThatOfTheContext) {
  char memory[64];
  ExecutionContext ctx;
  ctx.device_workspace = memory;
  ctx.device_workspace_bytes = 64;
  EXPECT_EQ(DeviceWorkspace(ctx, "SomeOp", 64), memory);
}

TEST(DeviceWorkspaceDeathTest, NamesTheOpAndTheBytesThatItNeeds) {
  ExecutionContext ctx;
  ctx.device_workspace_bytes = 64;
  EXPECT_DEATH(DeviceWorkspace(ctx, "SomeOp", 65),
               "SomeOp needs a device workspace of 65 bytes");
}

}  // namespace
}  // namespace gla
