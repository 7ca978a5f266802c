#include "inference_service/gla_decoder.h"

#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "inference_service/engine.h"
#include "inference_service/testing/recording_reader.h"
#include "model/testing/tiny_model.h"

namespace gla::inference {
namespace {

constexpr int kNoEos = -1;

const SamplingOptions kGreedy;
const SamplingOptions kSampled = {
    .temperature = 0.9f, .top_k = 100, .top_p = 0.95f, .seed = 42};

GenerationRequest Request(int prompt_tokens, uint64_t seed,
                          const SamplingOptions& sampling) {
  GenerationRequest request;
  for (int i = 0; i < prompt_tokens; ++i) {
    request.prompt.push_back(static_cast<int32_t>((seed * 97 + 13 * i) % 256));
  }
  request.sampling = sampling;
  request.max_new_tokens = 40;
  return request;
}

class GlaDecoderTest : public testing::Test {
 protected:
  std::unique_ptr<Engine> NewEngine(int slots) {
    Engine::Options options;
    options.prefill_chunk_tokens = 16;
    return std::make_unique<Engine>(
        std::make_unique<GlaDecoder>(&model_, slots, /*num_threads=*/2),
        nullptr, kNoEos, options);
  }

  LoadedModel loaded_ = MakeTinyModel();
  GlaModel model_{loaded_.config, loaded_.parameters.get()};
};

std::vector<int32_t> Tokens(Engine* engine, const GenerationRequest& request) {
  const auto reader = RecordingReader::Start(engine, request).value();
  EXPECT_TRUE(reader->AwaitFinish().status.ok());
  return reader->tokens();
}

TEST_F(GlaDecoderTest, GivesTheSameTokensAloneAndAmongNeighboursAtAnySlot) {
  for (const SamplingOptions& sampling : {kGreedy, kSampled}) {
    const GenerationRequest request = Request(41, 1, sampling);
    const std::vector<int32_t> alone = Tokens(NewEngine(1).get(), request);
    ASSERT_EQ(alone.size(), 40u);
    for (int place = 0; place <= 8; ++place) {
      const auto engine = NewEngine(9);
      std::shared_ptr<RecordingReader> reader;
      std::vector<std::shared_ptr<RecordingReader>> neighbours;
      for (int i = 0; i <= 8; ++i) {
        const GenerationRequest other =
            Request(1 + 9 * i, 100 + i, i % 2 == 0 ? kGreedy : kSampled);
        const bool is_place = i == place;
        auto started =
            RecordingReader::Start(engine.get(), is_place ? request : other);
        (is_place ? reader : neighbours.emplace_back()) = started.value();
      }
      reader->AwaitFinish();
      EXPECT_EQ(reader->tokens(), alone) << "at place " << place;
      for (const auto& neighbour : neighbours) {
        EXPECT_TRUE(neighbour->AwaitFinish().status.ok());
      }
    }
  }
}

TEST_F(GlaDecoderTest, AReusedSlotShowsNothingOfItsFormerUser) {
  const GenerationRequest request = Request(20, 3, kGreedy);
  const std::vector<int32_t> fresh = Tokens(NewEngine(1).get(), request);
  const auto engine = NewEngine(1);
  const std::vector<int32_t> former =
      Tokens(engine.get(), Request(60, 4, kGreedy));
  EXPECT_NE(former, fresh);
  EXPECT_EQ(Tokens(engine.get(), request), fresh);
}

TEST_F(GlaDecoderTest, DrawsBySeed) {
  const auto engine = NewEngine(1);
  GenerationRequest request = Request(20, 3, kSampled);
  const std::vector<int32_t> first = Tokens(engine.get(), request);
  EXPECT_EQ(Tokens(engine.get(), request), first);
  request.sampling.seed += 1;
  EXPECT_NE(Tokens(engine.get(), request), first);
}

TEST_F(GlaDecoderTest, SaysWhenTheLogitsAreNotNumbers) {
  Parameters& weights = *loaded_.parameters;
  const TensorView<float, 2> head = weights.matrix("lm_head.weight");
  std::fill_n(head.data(), head.size(),
              std::numeric_limits<float>::quiet_NaN());
  GlaDecoder decoder(&model_, /*num_slots=*/2, /*num_threads=*/1);
  decoder.ResetSlot(1);
  EXPECT_EQ(decoder.Prefill(1, {5, 6}, &kGreedy), kNoToken);
  const Decoder::StepInput input = {
      .slot = 1, .token = 7, .sampling = &kGreedy, .position = 1};
  int32_t next = 0;
  decoder.Step({input}, absl::MakeSpan(&next, 1));
  EXPECT_EQ(next, kNoToken);
}

}  // namespace
}  // namespace gla::inference
