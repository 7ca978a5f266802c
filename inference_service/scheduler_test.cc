#include "inference_service/scheduler.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace gla::inference {
namespace {

constexpr int64_t kChunk = 4;

// Every situation that a sequence can be in; prompts of 10 tokens.
const std::vector<SequenceView>& AllViews() {
  static const auto* views = new std::vector<SequenceView>{
      {.has_slot = false, .prompt_tokens = 10, .prompt_fed = 0},
      {.has_slot = true, .prompt_tokens = 10, .prompt_fed = 0},
      {.has_slot = true, .prompt_tokens = 10, .prompt_fed = 8},
      {.has_slot = true, .prompt_tokens = 10, .prompt_fed = 10},
      {.has_slot = true,
       .prompt_tokens = 10,
       .prompt_fed = 10,
       .parked = true}};
  return *views;
}

// Calls fn(sequences, free_slots) for all rows of up to five sequences.
template <typename Fn>
void ForAllSituations(Fn fn) {
  const int kinds = static_cast<int>(AllViews().size());
  for (int n = 0, rows = 1; n <= 5; ++n, rows *= kinds) {
    for (int row = 0; row < rows; ++row) {
      std::vector<SequenceView> sequences;
      for (int i = 0, rest = row; i < n; ++i, rest /= kinds) {
        sequences.push_back(AllViews()[rest % kinds]);
      }
      for (int free = 0; free <= n + 1; ++free) fn(sequences, free);
    }
  }
}

bool Decodes(const SequenceView& s) {
  return s.prompt_fed == s.prompt_tokens && !s.parked;
}

TEST(Scheduler, GivesAllSlotsThatItCanInOrderOfArrival) {
  ForAllSituations([](const std::vector<SequenceView>& sequences, int free) {
    std::vector<int> want;
    for (int i = 0; i < static_cast<int>(sequences.size()); ++i) {
      if (!sequences[i].has_slot && static_cast<int>(want.size()) < free) {
        want.push_back(i);
      }
    }
    ASSERT_EQ(PlanStep(sequences, free, kChunk).admit, want);
  });
}

TEST(Scheduler, DecodesExactlyThoseThatCan) {
  ForAllSituations([](const std::vector<SequenceView>& sequences, int free) {
    std::vector<int> want;
    for (int i = 0; i < static_cast<int>(sequences.size()); ++i) {
      if (Decodes(sequences[i])) want.push_back(i);
    }
    ASSERT_EQ(PlanStep(sequences, free, kChunk).decode, want);
  });
}

TEST(Scheduler, PrefillsTheOldestPromptThatHasASlot) {
  ForAllSituations([](const std::vector<SequenceView>& sequences, int free) {
    const StepPlan plan = PlanStep(sequences, free, kChunk);
    int want = -1;
    for (int i = 0; i < static_cast<int>(sequences.size()) && want < 0; ++i) {
      const bool admitted =
          std::count(plan.admit.begin(), plan.admit.end(), i) == 1;
      const bool has_slot = sequences[i].has_slot || admitted;
      if (has_slot && sequences[i].prompt_fed < 10) want = i;
    }
    ASSERT_EQ(plan.prefill.has_value(), want >= 0);
    if (want >= 0) {
      const PrefillChunk& chunk = *plan.prefill;
      ASSERT_EQ(chunk.sequence, want);
      ASSERT_EQ(chunk.begin, sequences[want].prompt_fed);
      ASSERT_EQ(chunk.end, std::min<int64_t>(chunk.begin + kChunk, 10));
    }
  });
}

TEST(Scheduler, RestsOnlyWhenNobodyCanMove) {
  ForAllSituations([](const std::vector<SequenceView>& sequences, int free) {
    const bool can_move = std::any_of(
        sequences.begin(), sequences.end(), [&](const SequenceView& s) {
          return s.has_slot ? !s.parked : free > 0;
        });
    ASSERT_EQ(PlanStep(sequences, free, kChunk).empty(), !can_move);
  });
}

// Plays plans until all have `outputs` tokens; one line of the log per step.
struct Play {
  struct Step {
    StepPlan plan;
    int free = 0;  // before it
  };
  std::vector<SequenceView> sequences;
  std::vector<int> tokens;
  std::vector<Step> log;

  void Run(int slots, int outputs) {
    tokens.assign(sequences.size(), 0);
    std::vector<int> alive(sequences.size());
    for (size_t i = 0; i < alive.size(); ++i) alive[i] = static_cast<int>(i);
    while (!alive.empty()) {
      std::vector<SequenceView> views;
      for (int i : alive) views.push_back(sequences[i]);
      StepPlan plan = PlanStep(views, slots, kChunk);
      for (int& i : plan.admit) i = alive[i];
      for (int& i : plan.decode) i = alive[i];
      if (plan.prefill) plan.prefill->sequence = alive[plan.prefill->sequence];
      log.push_back({plan, slots});
      ASSERT_FALSE(plan.empty());
      for (int i : plan.admit) {
        sequences[i].has_slot = true;
        --slots;
      }
      for (int i : plan.decode) ++tokens[i];
      if (plan.prefill) {
        SequenceView& s = sequences[plan.prefill->sequence];
        ASSERT_EQ(plan.prefill->begin, s.prompt_fed);
        s.prompt_fed = plan.prefill->end;
        if (s.prompt_fed == s.prompt_tokens) ++tokens[plan.prefill->sequence];
      }
      std::erase_if(alive, [&](int i) {
        if (tokens[i] >= outputs) ++slots;
        return tokens[i] >= outputs;
      });
    }
  }
};

TEST(Scheduler, CutsAPromptTheSameWayWhateverTheNeighbours) {
  for (int64_t prompt = 1; prompt <= 13; ++prompt) {
    std::vector<std::pair<int64_t, int64_t>> alone;
    for (int neighbours = 0; neighbours <= 8; ++neighbours) {
      Play play;
      for (int i = 0; i < neighbours; ++i) {
        play.sequences.push_back({.prompt_tokens = 1 + 3 * i});
      }
      play.sequences.push_back({.prompt_tokens = prompt});
      play.Run(/*slots=*/3, /*outputs=*/5);
      std::vector<std::pair<int64_t, int64_t>> chunks;
      for (const Play::Step& step : play.log) {
        if (step.plan.prefill && step.plan.prefill->sequence == neighbours) {
          chunks.emplace_back(step.plan.prefill->begin, step.plan.prefill->end);
        }
      }
      if (neighbours == 0) alone = chunks;
      EXPECT_EQ(chunks, alone);
    }
  }
}

TEST(Scheduler, ARunningSequenceGetsATokenEveryStepWhilePromptsComeIn) {
  Play play;
  play.sequences.push_back({.prompt_tokens = 1});
  for (int i = 0; i < 5; ++i) play.sequences.push_back({.prompt_tokens = 1000});
  play.Run(/*slots=*/6, /*outputs=*/50);
  for (size_t step = 1; step < 50; ++step) {
    const std::vector<int>& decode = play.log[step].plan.decode;
    EXPECT_EQ(std::count(decode.begin(), decode.end(), 0), 1) << step;
    ASSERT_TRUE(play.log[step].plan.prefill.has_value());
    EXPECT_LE(
        play.log[step].plan.prefill->end - play.log[step].plan.prefill->begin,
        kChunk);
  }
}

TEST(Scheduler, ServesManyMoreThanThereAreSlots) {
  Play play;
  for (int i = 0; i < 200; ++i) {
    play.sequences.push_back({.prompt_tokens = 1 + (i * 7) % 23});
  }
  play.Run(/*slots=*/3, /*outputs=*/4);
  for (int tokens : play.tokens) EXPECT_EQ(tokens, 4);
  for (const Play::Step& step : play.log) {
    EXPECT_LE(static_cast<int>(step.plan.admit.size()), step.free);
  }
}

}  // namespace
}  // namespace gla::inference
