#include "trainer_service/job_store.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "trainer_service/job_state.h"

namespace gla::trainer {
namespace {

using testing::HasSubstr;
using v1::Job;

const absl::Time kNow = absl::FromUnixSeconds(1'000'000);
const auto kNoEdit = [](JobRecord*) {};

std::string TestFile() {
  const std::string directory = absl::StrCat(
      testing::TempDir(), "/",
      testing::UnitTest::GetInstance()->current_test_info()->name());
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  return directory + "/jobs.db";
}

std::unique_ptr<JobStore> OpenStore(const std::string& file) {
  auto store = JobStore::Open(file);
  EXPECT_TRUE(store.ok()) << store.status();
  return *std::move(store);
}

Job NamedJob(const std::string& id) {
  Job job;
  job.set_name("jobs/" + id);
  job.mutable_spec()->set_total_steps(7);
  return job;
}

// Walks the events: dense, and each state change legal and joined to the last.
void ExpectLegalHistory(JobStore* store, const JobRecord& record) {
  const auto events = store->Events(record.id(), 0, 1 << 20);
  ASSERT_TRUE(events.ok()) << events.status();
  EXPECT_EQ(record.job.last_event_sequence(),
            static_cast<int64_t>(events->size()));
  Job::State state = Job::STATE_UNSPECIFIED;
  int64_t sequence = 0;
  for (const v1::JobEvent& event : *events) {
    EXPECT_EQ(event.sequence(), ++sequence);
    if (!event.has_state_change()) continue;
    EXPECT_EQ(event.state_change().from(), state);
    EXPECT_TRUE(CanTransition(state, event.state_change().to()));
    state = event.state_change().to();
  }
  EXPECT_EQ(record.job.state(), state);
}

TEST(JobStore, KeepsJobsAndEventsAcrossOpenings) {
  const std::string file = TestFile();
  {
    const auto store = OpenStore(file);
    ASSERT_TRUE(store->Create(NamedJob("a"), "", kNow).ok());
    ASSERT_TRUE(store
                    ->Transition("a", Job::STARTING, "go", kNow,
                                 [](JobRecord* record) {
                                   record->job.set_attempt(1);
                                   record->secret = "s";
                                   record->worker_pid = 12;
                                   record->worker_start_time = 34;
                                   record->restarts_without_progress = 2;
                                 })
                    .ok());
  }
  const auto store = OpenStore(file);
  const auto record = store->Get("a");
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->job.state(), Job::STARTING);
  EXPECT_EQ(record->job.state_message(), "go");
  EXPECT_EQ(record->job.spec().total_steps(), 7);
  EXPECT_EQ(record->job.start_time().seconds(), 1'000'000);
  EXPECT_EQ(record->secret, "s");
  EXPECT_EQ(record->worker_pid, 12);
  EXPECT_EQ(record->worker_start_time, 34);
  EXPECT_EQ(record->restarts_without_progress, 2);
  ExpectLegalHistory(store.get(), *record);
}

TEST(JobStore, RefusesAMoveThatTheTableDoesNotHave) {
  const auto store = OpenStore(TestFile());
  ASSERT_TRUE(store->Create(NamedJob("a"), "", kNow).ok());
  const auto moved = store->Transition("a", Job::SUCCEEDED, "", kNow, kNoEdit);
  EXPECT_EQ(moved.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(moved.status().message()),
              HasSubstr("jobs/a is QUEUED and cannot become SUCCEEDED"));
  EXPECT_EQ(store->Get("a")->job.last_event_sequence(), 1);
}

TEST(JobStore, TerminalStatesStay) {
  const auto store = OpenStore(TestFile());
  ASSERT_TRUE(store->Create(NamedJob("a"), "", kNow).ok());
  ASSERT_TRUE(store->Transition("a", Job::CANCELLED, "", kNow, kNoEdit).ok());
  for (int state = Job::State_MIN; state <= Job::State_MAX; ++state) {
    EXPECT_FALSE(
        store
            ->Transition("a", static_cast<Job::State>(state), "", kNow, kNoEdit)
            .ok());
  }
  EXPECT_TRUE(store->Get("a")->job.has_end_time());
}

TEST(JobStore, SameRequestIdGivesTheSameJob) {
  const auto store = OpenStore(TestFile());
  const auto first = store->Create(NamedJob("a"), "request", kNow);
  const auto again = store->Create(NamedJob("b"), "request", kNow);
  ASSERT_TRUE(first.ok() && again.ok());
  EXPECT_EQ(again->job.name(), "jobs/a");
  EXPECT_EQ(store->Get("b").status().code(), absl::StatusCode::kNotFound);
  const auto other = store->Create(NamedJob("a"), "request-2", kNow);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("jobs/a"));
}

TEST(JobStore, ListsNewestFirstInPages) {
  const auto store = OpenStore(TestFile());
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(store->Create(NamedJob(absl::StrCat("j", i)), "", kNow).ok());
  }
  const auto page = store->List(INT64_MAX, 2);
  ASSERT_TRUE(page.ok());
  ASSERT_EQ(page->size(), 2u);
  EXPECT_EQ((*page)[0].id(), "j4");
  const auto rest = store->List((*page)[1].number, 10);
  ASSERT_EQ(rest->size(), 3u);
  EXPECT_EQ((*rest)[0].id(), "j2");
  EXPECT_EQ(*store->CountQueuedBefore((*rest)[0].number), 2);
}

TEST(JobStore, ReturnsEventsAfterASequenceNumber) {
  const auto store = OpenStore(TestFile());
  ASSERT_TRUE(store->Create(NamedJob("a"), "", kNow).ok());
  for (int i = 2; i <= 9; ++i) {
    v1::JobEvent event;
    event.set_checkpoint_committed(absl::StrCat("c", i));
    ASSERT_TRUE(store->Append("a", event, kNow, kNoEdit).ok());
  }
  const auto events = store->Events("a", 4, 3);
  ASSERT_TRUE(events.ok());
  ASSERT_EQ(events->size(), 3u);
  EXPECT_EQ((*events)[0].sequence(), 5);
  EXPECT_EQ((*events)[2].checkpoint_committed(), "c7");
}

TEST(JobStore, RefusesAFileThatIsNoDatabase) {
  const std::string file = TestFile();
  FILE* out = fopen(file.c_str(), "w");
  for (int i = 0; i < 1000; ++i) fputs("this is not a database\n", out);
  fclose(out);
  EXPECT_EQ(JobStore::Open(file).status().code(), absl::StatusCode::kDataLoss);
}

// Runs jobs through their lives for ever; tells each finished call on `told`.
[[noreturn]] void WriteUntilKilled(const std::string& file, int round,
                                   int told) {
  const auto store = OpenStore(file);
  for (int i = 0;; ++i) {
    const std::string id = absl::StrCat("r", round, "-", i);
    if (!store->Create(NamedJob(id), id, kNow).ok()) abort();
    for (Job::State to : {Job::STARTING, Job::RUNNING, Job::RECOVERING,
                          Job::STARTING, Job::RUNNING, Job::SUCCEEDED}) {
      const auto record = store->Transition(id, to, "", kNow, kNoEdit);
      if (!record.ok()) abort();
      const std::string line =
          absl::StrCat(id, " ", record->job.last_event_sequence(), "\n");
      if (write(told, line.data(), line.size()) < 0) abort();
    }
  }
}

TEST(JobStore, SurvivesKillNineAtAnyMoment) {
  const std::string file = TestFile();
  unsigned random = 12345;
  for (int round = 0; round < 12; ++round) {
    int told[2];
    ASSERT_EQ(pipe(told), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(told[0]);
      WriteUntilKilled(file, round, told[1]);
    }
    close(told[1]);
    // Kill after a number of messages and a fraction of the next call.
    random = random * 1664525 + 1013904223;
    std::string heard;
    char c;
    for (size_t bytes = random >> 23; heard.size() < bytes;) {
      ASSERT_EQ(read(told[0], &c, 1), 1);
      heard.push_back(c);
    }
    usleep(random >> 22 & 0x3ff);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    while (read(told[0], &c, 1) == 1) heard.push_back(c);
    close(told[0]);

    const auto store = OpenStore(file);
    const auto records = store->List(INT64_MAX, 1 << 20);
    ASSERT_TRUE(records.ok()) << records.status();
    for (const JobRecord& record : *records) {
      ExpectLegalHistory(store.get(), record);
    }
    // What was told is there.
    const size_t end = heard.rfind('\n');
    if (end == std::string::npos) continue;
    const size_t begin = heard.rfind('\n', end - 1) + 1;
    const size_t space = heard.find(' ', begin);
    const auto last = store->Get(heard.substr(begin, space - begin));
    ASSERT_TRUE(last.ok()) << last.status();
    EXPECT_GE(last->job.last_event_sequence(), atoi(heard.c_str() + space));
  }
}

}  // namespace
}  // namespace gla::trainer
