#include "tools/cli/job_watcher.h"

#include <algorithm>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/cli/print.h"

namespace gla::cli {
namespace {

using trainer::v1::Job;

constexpr absl::Duration kPlainInterval = absl::Seconds(10);

std::string EvaluationLine(const trainer::v1::Progress& progress) {
  std::string line =
      absl::StrFormat("step %d  validation loss %.4f", progress.step(),
                      progress.evaluation_loss());
  if (progress.has_evaluation_bits_per_byte()) {
    absl::StrAppendFormat(&line, "  %.4f bits per byte",
                          progress.evaluation_bits_per_byte());
  }
  return line;
}

}  // namespace

std::string ProgressLine(const trainer::v1::Progress& progress) {
  return absl::StrFormat("step %d/%d  loss %.4f  %s tokens/s  %s left",
                         progress.step(), progress.total_steps(),
                         progress.loss(),
                         FormatCount(progress.tokens_per_second()),
                         FormatSeconds(progress.remaining().seconds()));
}

ExitCode ExitCodeOf(Job::State state) {
  switch (state) {
    case Job::SUCCEEDED:
      return kSucceeded;
    case Job::CANCELLED:
      return kCancelled;
    default:
      return kFailed;
  }
}

JobWatcher::~JobWatcher() {
  if (open_line_) std::cout << std::endl;
}

void JobWatcher::Show(const trainer::v1::JobEvent& event, absl::Time now) {
  last_sequence_ = std::max(last_sequence_, event.sequence());
  ended_ = ended_ || event.end_of_job();
  if (event.has_job()) job_ = event.job();
  if (json_) {
    PrintJson(event);
    return;
  }
  if (event.has_progress()) ShowProgress(event.progress(), now);
  if (event.has_state_change()) {
    const auto& change = event.state_change();
    Line(absl::StrCat(Job::State_Name(change.to()),
                      change.message().empty() ? "" : ": ", change.message()));
  }
  if (!event.checkpoint_committed().empty()) {
    Line(absl::StrCat("checkpoint ", event.checkpoint_committed()));
  }
  if (!event.checkpoint_quarantined().empty()) {
    Line(absl::StrCat("damaged checkpoint set aside: ",
                      event.checkpoint_quarantined()));
  }
}

void JobWatcher::ShowProgress(const trainer::v1::Progress& progress,
                              absl::Time now) {
  if (progress.has_evaluation_loss() &&
      progress.evaluation_loss() != last_evaluation_) {
    last_evaluation_ = progress.evaluation_loss();
    Line(EvaluationLine(progress));
  }
  if (progress.step() == 0) return;
  if (terminal_) {
    std::cout << "\r\x1b[K" << ProgressLine(progress) << std::flush;
    open_line_ = true;
  } else if (now - last_shown_ >= kPlainInterval ||
             (progress.step() == progress.total_steps() &&
              progress.step() != last_step_)) {
    Line(ProgressLine(progress));
    last_shown_ = now;
    last_step_ = progress.step();
  }
}

void JobWatcher::Line(const std::string& text) {
  if (open_line_) std::cout << "\r\x1b[K";
  open_line_ = false;
  std::cout << text << std::endl;
}

}  // namespace gla::cli
