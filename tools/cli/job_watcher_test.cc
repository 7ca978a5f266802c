#include "tools/cli/job_watcher.h"

#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace gla::cli {
namespace {

using trainer::v1::Job;
using trainer::v1::JobEvent;

JobEvent ProgressEvent(int64_t step) {
  JobEvent event;
  event.mutable_progress()->set_step(step);
  event.mutable_progress()->set_total_steps(600);
  event.mutable_progress()->set_loss(2.5);
  event.mutable_progress()->set_tokens_per_second(12345);
  event.mutable_progress()->mutable_remaining()->set_seconds(192);
  return event;
}

// What a watcher without a terminal prints for `events`, one a second.
std::string Shown(const std::vector<JobEvent>& events) {
  ::testing::internal::CaptureStdout();
  JobWatcher watcher(/*terminal=*/false, /*json=*/false);
  absl::Time now = absl::UnixEpoch();
  for (const JobEvent& event : events) {
    watcher.Show(event, now);
    now += absl::Seconds(1);
  }
  return ::testing::internal::GetCapturedStdout();
}

TEST(ProgressLine, HasStepLossRateAndTimeLeft) {
  EXPECT_EQ(ProgressLine(ProgressEvent(120).progress()),
            "step 120/600  loss 2.5000  12.3k tokens/s  3m12s left");
}

TEST(JobWatcher, ThinsOutProgressWithoutATerminal) {
  std::vector<JobEvent> events;
  for (int step = 1; step <= 25; ++step) events.push_back(ProgressEvent(step));
  const std::string shown = Shown(events);
  EXPECT_TRUE(absl::StrContains(shown, "step 1/"));
  EXPECT_TRUE(absl::StrContains(shown, "step 11/"));
  EXPECT_TRUE(absl::StrContains(shown, "step 21/"));
  EXPECT_FALSE(absl::StrContains(shown, "step 12/"));
}

TEST(JobWatcher, ShowsTheLastStepOnceWithoutATerminal) {
  const std::string shown =
      Shown({ProgressEvent(599), ProgressEvent(600), ProgressEvent(600)});
  const size_t first = shown.find("step 600/");
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(shown.find("step 600/", first + 1), std::string::npos);
}

TEST(JobWatcher, ShowsEachEvaluationOnce) {
  JobEvent event = ProgressEvent(100);
  event.mutable_progress()->set_evaluation_loss(3.25);
  event.mutable_progress()->set_evaluation_bits_per_byte(2.125);
  const std::string shown = Shown({event, event});
  const size_t first = shown.find("validation loss 3.2500  2.1250 bits");
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(shown.find("validation", first + 1), std::string::npos);
}

TEST(JobWatcher, EndsOnlyWithTheLastMessageAndTellsTheState) {
  JobWatcher watcher(/*terminal=*/false, /*json=*/true);
  ::testing::internal::CaptureStdout();
  JobEvent event;
  event.set_sequence(7);
  event.mutable_state_change()->set_to(Job::CANCELLED);
  watcher.Show(event, absl::UnixEpoch());
  EXPECT_FALSE(watcher.ended());
  event.set_end_of_job(true);
  event.mutable_job()->set_state(Job::CANCELLED);
  watcher.Show(event, absl::UnixEpoch());
  ::testing::internal::GetCapturedStdout();
  EXPECT_TRUE(watcher.ended());
  EXPECT_EQ(watcher.last_sequence(), 7);
  EXPECT_EQ(ExitCodeOf(watcher.job().state()), kCancelled);
}

}  // namespace
}  // namespace gla::cli
