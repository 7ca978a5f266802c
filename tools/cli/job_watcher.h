// Shows a job's life as its events arrive.
#ifndef GLA_TOOLS_CLI_JOB_WATCHER_H_
#define GLA_TOOLS_CLI_JOB_WATCHER_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "gla/trainer/v1/trainer.pb.h"
#include "tools/cli/command.h"

namespace gla::cli {

// "step 120/600  loss 2.3151  12.4k tokens/s  3m12s left".
std::string ProgressLine(const trainer::v1::Progress& progress);

// The exit code that tells a terminal state.
ExitCode ExitCodeOf(trainer::v1::Job::State state);

// Prints events to stdout: one rewritten line of progress on a terminal, else a
// line at most every ten seconds; state changes, evaluations and checkpoints
// each get a line of their own.
class JobWatcher {
 public:
  JobWatcher(bool terminal, bool json) : terminal_(terminal), json_(json) {}
  ~JobWatcher();

  void Show(const trainer::v1::JobEvent& event, absl::Time now);

  // Where to resume the watch after a lost connection.
  int64_t last_sequence() const { return last_sequence_; }
  bool ended() const { return ended_; }
  // Of the job as last seen; meaningful when ended().
  const trainer::v1::Job& job() const { return job_; }

 private:
  void ShowProgress(const trainer::v1::Progress& progress, absl::Time now);
  void Line(const std::string& text);

  const bool terminal_, json_;
  bool open_line_ = false;  // the cursor is behind a progress line
  absl::Time last_shown_ = absl::InfinitePast();
  int64_t last_step_ = 0;  // shown last without a terminal
  double last_evaluation_ = -1;
  int64_t last_sequence_ = 0;
  bool ended_ = false;
  trainer::v1::Job job_;
};

}  // namespace gla::cli

#endif  // GLA_TOOLS_CLI_JOB_WATCHER_H_
