#include "inference_service/engine.h"

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "inference_service/testing/fake_decoder.h"
#include "inference_service/testing/recording_reader.h"

namespace gla::inference {
namespace {

constexpr int kNoEos = -1;

GenerationRequest Request(int prompt_tokens, int max_new_tokens,
                          uint64_t seed = 7) {
  GenerationRequest request;
  for (int i = 0; i < prompt_tokens; ++i) {
    request.prompt.push_back(static_cast<int32_t>((seed * 31 + i) % 256));
  }
  request.sampling.seed = seed;
  request.max_new_tokens = max_new_tokens;
  return request;
}

std::vector<int32_t> Expected(const GenerationRequest& request) {
  return FakeDecoder::Expected(request.prompt, request.sampling,
                               request.max_new_tokens);
}

std::string Bytes(const std::vector<int32_t>& tokens) {
  return std::string(tokens.begin(), tokens.end());
}

// An engine over a fake decoder with prefill chunks of four tokens.
struct Rig {
  explicit Rig(int slots, Engine::Options options = {}, int32_t eos = kNoEos) {
    options.prefill_chunk_tokens = 4;
    auto owned = std::make_unique<FakeDecoder>(slots);
    decoder = owned.get();
    engine = std::make_unique<Engine>(std::move(owned), tokenizer.get(), eos,
                                      options);
  }
  ~Rig() {
    decoder->LetGo();
    AwaitIdle();
  }

  std::shared_ptr<RecordingReader> Start(GenerationRequest request) {
    return RecordingReader::Start(engine.get(), std::move(request)).value();
  }
  // A reader that takes nothing by itself.
  Engine::StreamId StartSilent(GenerationRequest request) {
    return engine->Submit(std::move(request), [] {}).value();
  }
  void Await(absl::FunctionRef<bool(const EngineStats&)> want) {
    EXPECT_TRUE(engine->AwaitStats(want, absl::Now() + absl::Seconds(20)));
  }
  void AwaitIdle() {
    Await([](const EngineStats& s) { return s.idle(); });
  }
  // Lets the call that waits at the door through and returns the next.
  std::string NextCall() {
    decoder->LetOneThrough();
    return decoder->AwaitCall();
  }

  std::unique_ptr<Tokenizer> tokenizer = MakeByteTokenizer();
  FakeDecoder* decoder = nullptr;
  std::unique_ptr<Engine> engine;
};

TEST(Engine, GivesTheTokensThatTheModelDraws) {
  Rig rig(/*slots=*/2);
  for (int prompt : {1, 3, 4, 5, 8, 17}) {
    const GenerationRequest request = Request(prompt, /*max_new_tokens=*/6);
    const auto reader = rig.Start(request);
    const Finish finish = reader->AwaitFinish();
    EXPECT_TRUE(finish.status.ok()) << finish.status;
    EXPECT_EQ(finish.reason, FinishReason::kLength);
    EXPECT_EQ(finish.prompt_tokens, prompt);
    EXPECT_EQ(finish.output_tokens, 6);
    EXPECT_EQ(reader->tokens(), Expected(request));
  }
}

TEST(Engine, ServesManyMoreRequestsThanSlotsEachAsIfAlone) {
  Rig rig(/*slots=*/3);
  std::vector<GenerationRequest> requests;
  std::vector<std::shared_ptr<RecordingReader>> readers;
  for (int i = 0; i < 100; ++i) {
    requests.push_back(Request(1 + i % 11, 1 + i % 7, /*seed=*/i));
    readers.push_back(rig.Start(requests.back()));
  }
  for (size_t i = 0; i < readers.size(); ++i) {
    EXPECT_TRUE(readers[i]->AwaitFinish().status.ok());
    EXPECT_EQ(readers[i]->tokens(), Expected(requests[i])) << i;
  }
}

TEST(Engine, ASlotShowsNothingOfItsFormerUser) {
  Rig rig(/*slots=*/1);
  const GenerationRequest secret = Request(9, 5, /*seed=*/1);
  const GenerationRequest other = Request(3, 5, /*seed=*/2);
  rig.Start(secret)->AwaitFinish();
  const auto reader = rig.Start(other);
  reader->AwaitFinish();
  EXPECT_EQ(reader->tokens(), Expected(other));
}

TEST(Engine, DecodesBetweenThePrefillChunksOfANewcomer) {
  Rig rig(/*slots=*/2);
  rig.decoder->Hold();
  const auto old = rig.Start(Request(1, 8));
  EXPECT_EQ(rig.decoder->AwaitCall(), "prefill 0 0-1");
  const auto newcomer = rig.Start(Request(9, 2));
  EXPECT_EQ(rig.NextCall(), "step 0");
  EXPECT_EQ(rig.NextCall(), "prefill 1 0-4");
  EXPECT_EQ(rig.NextCall(), "step 0");
  EXPECT_EQ(rig.NextCall(), "prefill 1 4-8");
  EXPECT_EQ(rig.NextCall(), "step 0");
  EXPECT_EQ(rig.NextCall(), "prefill 1 8-9");
  EXPECT_EQ(rig.NextCall(), "step 0 1");
}

TEST(Engine, StopsAtTheEndOfTextToken) {
  const GenerationRequest request = Request(5, 10);
  const std::vector<int32_t> all = Expected(request);
  Rig rig(/*slots=*/1, {}, /*eos=*/all[4]);
  const auto reader = rig.Start(request);
  const Finish finish = reader->AwaitFinish();
  EXPECT_EQ(finish.reason, FinishReason::kStop);
  EXPECT_EQ(finish.matched_stop, "");
  EXPECT_EQ(finish.output_tokens, 4);
  EXPECT_EQ(reader->tokens(), std::vector<int32_t>(&all[0], &all[4]));
}

TEST(Engine, GoesPastTheEndOfTextTokenWhenToldTo) {
  GenerationRequest request = Request(5, 10);
  request.ignore_eos = true;
  Rig rig(/*slots=*/1, {}, /*eos=*/Expected(request)[4]);
  const auto reader = rig.Start(request);
  EXPECT_EQ(reader->AwaitFinish().reason, FinishReason::kLength);
  EXPECT_EQ(reader->tokens(), Expected(request));
}

TEST(Engine, StopsAtAStopStringAndEndsTheTextBeforeIt) {
  GenerationRequest request = Request(5, 50);
  const std::string all = Bytes(Expected(request));
  request.stop = {"never comes", all.substr(20, 3)};
  Rig rig(/*slots=*/1);
  const auto reader = rig.Start(request);
  const Finish finish = reader->AwaitFinish();
  EXPECT_EQ(finish.reason, FinishReason::kStop);
  EXPECT_EQ(finish.matched_stop, all.substr(20, 3));
  EXPECT_EQ(finish.output_tokens, 23);
  EXPECT_EQ(reader->text(), all.substr(0, 20));
}

TEST(Engine, GivesAllTextWhenTheStopStringDoesNotCome) {
  GenerationRequest request = Request(5, 20);
  const std::string all = Bytes(Expected(request));
  request.stop = {all.substr(18) + "x"};  // held back until the end
  Rig rig(/*slots=*/1);
  const auto reader = rig.Start(request);
  EXPECT_EQ(reader->AwaitFinish().reason, FinishReason::kLength);
  EXPECT_EQ(reader->text(), all);
}

TEST(Engine, CancelInTheQueueTakesNoSlot) {
  Rig rig(/*slots=*/1);
  rig.decoder->Hold();
  rig.Start(Request(1, 2));
  EXPECT_EQ(rig.decoder->AwaitCall(), "prefill 0 0-1");
  const auto queued = rig.Start(Request(1, 2));
  EXPECT_EQ(rig.engine->stats().queued, 1);
  queued->Cancel();
  EXPECT_EQ(rig.NextCall(), "step 0");
  EXPECT_EQ(rig.engine->stats().queued, 0);
  rig.decoder->LetOneThrough();
  rig.AwaitIdle();  // no call comes to the door
}

TEST(Engine, CancelInPrefillFreesTheSlotWithinAStep) {
  Rig rig(/*slots=*/1);
  rig.decoder->Hold();
  const auto reader = rig.Start(Request(100, 2));
  EXPECT_EQ(rig.decoder->AwaitCall(), "prefill 0 0-4");
  EXPECT_EQ(rig.engine->stats().slots_free, 0);
  reader->Cancel();
  rig.decoder->LetOneThrough();
  rig.AwaitIdle();
}

TEST(Engine, CancelInDecodeFreesTheSlotWithinAStep) {
  Rig rig(/*slots=*/2);
  rig.decoder->Hold();
  const auto stays = rig.Start(Request(1, 100));
  EXPECT_EQ(rig.decoder->AwaitCall(), "prefill 0 0-1");
  const auto goes = rig.Start(Request(1, 100));
  EXPECT_EQ(rig.NextCall(), "step 0");
  EXPECT_EQ(rig.NextCall(), "prefill 1 0-1");
  EXPECT_EQ(rig.NextCall(), "step 0 1");
  goes->Cancel();
  EXPECT_EQ(rig.NextCall(), "step 0");
  EXPECT_EQ(rig.engine->stats().slots_free, 1);
  goes->Cancel();  // twice does no harm
  stays->Cancel();
}

TEST(Engine, GivesAFreedSlotToTheNextInTheQueue) {
  Rig rig(/*slots=*/1);
  rig.decoder->Hold();
  const auto first = rig.Start(Request(2, 100));
  EXPECT_EQ(rig.decoder->AwaitCall(), "prefill 0 0-2");
  const GenerationRequest request = Request(3, 4, /*seed=*/9);
  const auto second = rig.Start(request);
  first->Cancel();
  EXPECT_EQ(rig.NextCall(), "prefill 0 0-3");
  rig.decoder->LetGo();
  second->AwaitFinish();
  EXPECT_EQ(second->tokens(), Expected(request));
}

TEST(Engine, ParksASlowReaderAndGoesOnWhenItHasRead) {
  Rig rig(/*slots=*/2, {.stream_tokens = 5});
  const GenerationRequest request = Request(3, 12);
  const Engine::StreamId slow = rig.StartSilent(request);
  rig.Await([](const EngineStats& s) { return s.parked == 1; });
  EXPECT_EQ(rig.engine->stats().slots_free, 1);
  // Others are served meanwhile.
  rig.Start(Request(6, 30))->AwaitFinish();
  std::vector<int32_t> tokens;
  while (true) {
    const Output output = rig.engine->Take(slow);
    EXPECT_EQ(output.offset, static_cast<int64_t>(tokens.size()));
    EXPECT_LE(output.tokens.size(), 5u);
    tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
    if (output.finish) break;
    if (tokens.size() < 10) {
      rig.Await([](const EngineStats& s) { return s.parked == 1; });
    } else {
      rig.AwaitIdle();
    }
  }
  EXPECT_EQ(tokens, Expected(request));
}

TEST(Engine, FreesTheSlotOfAParkedReaderThatGoes) {
  Rig rig(/*slots=*/1, {.stream_tokens = 5});
  const Engine::StreamId slow = rig.StartSilent(Request(3, 12));
  rig.Await([](const EngineStats& s) { return s.parked == 1; });
  const GenerationRequest request = Request(2, 3, /*seed=*/4);
  const auto waits = rig.Start(request);
  rig.engine->Cancel(slow);
  waits->AwaitFinish();
  EXPECT_EQ(waits->tokens(), Expected(request));
}

TEST(Engine, RefusesWhatTheQueueCannotHold) {
  Rig rig(/*slots=*/2, {.max_queued = 3});
  rig.decoder->Hold();
  std::vector<std::shared_ptr<RecordingReader>> readers;
  for (int i = 0; i < 5; ++i) readers.push_back(rig.Start(Request(1, 3, i)));
  const auto refused =
      RecordingReader::Start(rig.engine.get(), Request(1, 1)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(),
            "the queue is full: 3 requests wait for 2 state slots");
  rig.decoder->LetGo();
  for (const auto& reader : readers) {
    EXPECT_TRUE(reader->AwaitFinish().status.ok());
  }
  EXPECT_TRUE(rig.Start(Request(1, 1))->AwaitFinish().status.ok());
}

struct ManualClock {
  std::atomic<int64_t> seconds{1'000'000};
  std::function<absl::Time()> Reader() {
    return [this] { return absl::FromUnixSeconds(seconds); };
  }
};

TEST(Engine, EndsARequestWhoseDeadlinePassesInTheQueue) {
  ManualClock clock;
  Rig rig(/*slots=*/1, {.clock = clock.Reader()});
  rig.decoder->Hold();
  const auto runs = rig.Start(Request(1, 3));
  rig.decoder->AwaitCall();
  GenerationRequest request = Request(1, 3);
  request.deadline = absl::FromUnixSeconds(clock.seconds + 5);
  const auto waits = rig.Start(request);
  clock.seconds += 5;
  EXPECT_EQ(rig.NextCall(), "step 0");
  EXPECT_EQ(waits->AwaitFinish().status,
            absl::DeadlineExceededError(
                "the deadline passed in the queue, after 0 tokens"));
  EXPECT_EQ(rig.engine->stats().queued, 0);
  rig.decoder->LetGo();
  EXPECT_TRUE(runs->AwaitFinish().status.ok());
}

TEST(Engine, EndsARequestWhoseDeadlinePassesAtWork) {
  ManualClock clock;
  Rig rig(/*slots=*/1, {.clock = clock.Reader()});
  rig.decoder->Hold();
  GenerationRequest request = Request(1, 30);
  request.deadline = absl::FromUnixSeconds(clock.seconds + 5);
  const auto reader = rig.Start(request);
  rig.decoder->AwaitCall();
  EXPECT_EQ(rig.NextCall(), "step 0");
  clock.seconds += 5;
  rig.decoder->LetOneThrough();
  EXPECT_EQ(reader->AwaitFinish().status,
            absl::DeadlineExceededError(
                "the deadline passed at work, after 2 tokens"));
  rig.AwaitIdle();
}

TEST(Engine, EndsAParkedRequestAtItsDeadline) {
  Rig rig(/*slots=*/1, {.stream_tokens = 2});
  GenerationRequest request = Request(1, 30);
  request.deadline = absl::Now() + absl::Milliseconds(50);
  const Engine::StreamId silent = rig.StartSilent(request);
  rig.AwaitIdle();
  EXPECT_EQ(rig.engine->Take(silent).finish->status.code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(Engine, TellsHowLongThingsTook) {
  ManualClock clock;
  Rig rig(/*slots=*/1, {.clock = clock.Reader()});
  rig.decoder->Hold();
  rig.Start(Request(1, 1));
  rig.decoder->AwaitCall();
  const auto reader = rig.Start(Request(1, 2));
  clock.seconds += 1;  // the first one's prefill
  EXPECT_EQ(rig.NextCall(), "prefill 0 0-1");
  clock.seconds += 2;
  EXPECT_EQ(rig.NextCall(), "step 0");
  clock.seconds += 4;
  rig.decoder->LetOneThrough();
  const Finish finish = reader->AwaitFinish();
  EXPECT_EQ(finish.queued, absl::Seconds(1));
  EXPECT_EQ(finish.time_to_first_token, absl::Seconds(3));
  EXPECT_EQ(finish.total, absl::Seconds(7));
}

TEST(Engine, FinishesWhatItAcceptedWhenItStopsAccepting) {
  Rig rig(/*slots=*/1);
  rig.decoder->Hold();
  const auto running = rig.Start(Request(1, 3));
  const auto queued = rig.Start(Request(1, 3));
  rig.engine->StopAccepting();
  EXPECT_EQ(
      RecordingReader::Start(rig.engine.get(), Request(1, 1)).status().code(),
      absl::StatusCode::kUnavailable);
  rig.decoder->LetGo();
  EXPECT_TRUE(running->AwaitFinish().status.ok());
  EXPECT_TRUE(queued->AwaitFinish().status.ok());
}

TEST(Engine, AbortEndsEveryStreamWithItsStatus) {
  Rig rig(/*slots=*/1, {.stream_tokens = 2});
  const Engine::StreamId parked = rig.StartSilent(Request(1, 30));
  const auto queued = rig.Start(Request(1, 3));
  rig.Await([](const EngineStats& s) { return s.parked == 1; });
  rig.engine->Abort(absl::UnavailableError("going down"));
  EXPECT_EQ(queued->AwaitFinish().status, absl::UnavailableError("going down"));
  rig.AwaitIdle();
  const Output output = rig.engine->Take(parked);
  EXPECT_EQ(output.tokens.size(), 2u);
  EXPECT_EQ(output.finish->status, absl::UnavailableError("going down"));
}

TEST(Engine, AModelWithoutNumbersEndsTheStreamNotTheServer) {
  Rig rig(/*slots=*/1);
  rig.decoder->BreakAtPosition(2);
  const Finish finish = rig.Start(Request(1, 10))->AwaitFinish();
  EXPECT_EQ(finish.status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(finish.output_tokens, 2);
  EXPECT_TRUE(rig.Start(Request(1, 2))->AwaitFinish().status.ok());
}

TEST(Engine, EndsWhileStreamsAreOpen) {
  auto owned = std::make_unique<FakeDecoder>(1);
  Engine engine(std::move(owned), nullptr, kNoEos, {.stream_tokens = 2});
  ASSERT_TRUE(engine.Submit(Request(1, 1000), [] {}).ok());
  ASSERT_TRUE(engine.Submit(Request(1, 1000), [] {}).ok());
}

// Many threads submit, read and cancel at random.
TEST(Engine, SurvivesAnyMixOfReaders) {
  Rig rig(/*slots=*/4, {.max_queued = 8, .stream_tokens = 3});
  std::atomic<int> finished{0}, refused{0};
  const auto client = [&](int thread) {
    std::mt19937 random(thread);
    for (int i = 0; i < 60; ++i) {
      const GenerationRequest request =
          Request(1 + random() % 20, 1 + random() % 20, random());
      const bool cancels = random() % 3 == 0;
      const auto reader = RecordingReader::Start(rig.engine.get(), request);
      if (!reader.ok()) {
        ++refused;
      } else if (cancels) {
        (*reader)->Cancel();
      } else {
        EXPECT_TRUE((*reader)->AwaitFinish().status.ok());
        EXPECT_EQ((*reader)->tokens(), Expected(request));
        ++finished;
      }
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) threads.emplace_back(client, t);
  for (std::thread& thread : threads) thread.join();
  rig.AwaitIdle();
  EXPECT_GT(finished, 100);
}

}  // namespace
}  // namespace gla::inference
