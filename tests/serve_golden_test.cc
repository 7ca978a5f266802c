// The greedy continuations of the goldens, from a served directory: prompt and
// output go the whole way through the engine.
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "inference_service/model_store.h"
#include "model/checkpoint/safetensors.h"

namespace gla::inference {
namespace {

// Row `row` of an int32 tensor [rows, columns].
std::vector<int32_t> Row(const SafetensorsTensor& tensor, int64_t row) {
  std::vector<int32_t> values(tensor.shape[1]);
  const size_t bytes = values.size() * sizeof(int32_t);
  std::memcpy(values.data(), tensor.data + row * bytes, bytes);
  return values;
}

// Greedy tokens of all rows at once, in neighbouring slots.
std::vector<std::vector<int32_t>> Generate(Engine* engine,
                                           const SafetensorsTensor& prompts,
                                           int32_t n) {
  std::vector<Engine::StreamId> streams;
  for (int64_t row = 0; row < prompts.shape[0]; ++row) {
    GenerationRequest request;
    request.prompt = Row(prompts, row);
    request.max_new_tokens = n;
    request.ignore_eos = true;
    streams.push_back(engine->Submit(std::move(request), [] {}).value());
  }
  EXPECT_TRUE(
      engine->AwaitStats([](const EngineStats& stats) { return stats.idle(); },
                         absl::Now() + absl::Seconds(60)));
  std::vector<std::vector<int32_t>> tokens;
  for (Engine::StreamId stream : streams) {
    tokens.push_back(engine->Take(stream).tokens);
  }
  return tokens;
}

class ServeGolden : public testing::TestWithParam<std::string> {};

TEST_P(ServeGolden, ContinuesAsTheReferenceDoes) {
  const std::string directory = "tests/goldens/" + GetParam();
  const auto expected =
      SafetensorsReader::Open(directory + "/expected.safetensors").value();
  const SafetensorsTensor& generated = **expected->Find("generated");
  ModelStore store({.state_slots = 4, .threads = 2});
  const auto model = store.Load("models/golden", directory).value();
  const auto tokens = Generate(&model->engine(), **expected->Find("tokens"),
                               static_cast<int32_t>(generated.shape[1]));
  ASSERT_EQ(static_cast<int64_t>(tokens.size()), generated.shape[0]);
  for (int64_t row = 0; row < generated.shape[0]; ++row) {
    EXPECT_EQ(tokens[row], Row(generated, row)) << "row " << row;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ServeGolden,
                         testing::Values("tiny", "tied_old_layout"));

}  // namespace
}  // namespace gla::inference
