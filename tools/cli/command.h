// The command line of `gla`: a table of verbs, their flags and their help.
#ifndef GLA_TOOLS_CLI_COMMAND_H_
#define GLA_TOOLS_CLI_COMMAND_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/types/span.h"

namespace gla::cli {

// What the process returns to the shell (docs: `gla help`).
enum ExitCode {
  kSucceeded = 0,
  kFailed = 1,  // the job failed, or any other error
  kUsage = 2,
  kCancelled = 3,
  kConnectionLost = 4,  // before the end; the server may be down
  kNotFound = 5,
  kPrecondition = 6,
  kQueueFull = 7,
  kDeadline = 8,
  kDataLoss = 9,
};
ExitCode ExitCodeOf(const absl::Status& status);

struct Flag {
  std::string name;           // without dashes
  std::string value;          // what it takes, for help: "N"; empty: a switch
  std::string default_value;  // text of the default; empty: not given
  std::string help;
};

// The words after the verb, parsed.
class Arguments {
 public:
  std::vector<std::string> positional;
  std::map<std::string, std::vector<std::string>> flags;  // given or default

  bool Has(const std::string& flag) const { return flags.count(flag) > 0; }
  // The last value given, or "".
  std::string Get(const std::string& flag) const;
  std::vector<std::string> GetAll(const std::string& flag) const;
  // INVALID_ARGUMENT naming the flag when the value is no number that fits.
  template <typename Integer = int64_t>
  absl::StatusOr<Integer> GetInt(const std::string& flag) const {
    Integer value = 0;
    if (absl::SimpleAtoi(Get(flag), &value)) return value;
    return BadNumber(flag);
  }
  absl::StatusOr<double> GetDouble(const std::string& flag) const;
  bool json() const { return Get("output") == "json"; }

 private:
  absl::Status BadNumber(const std::string& flag) const;
};

struct Command {
  std::string verb;            // "train submit"
  std::string arguments = {};  // positional ones, for help: "JOB.textproto"
  int min_positional = 0;
  int max_positional = 0;
  std::string summary = {};  // one line
  std::vector<Flag> flags = {};
  std::string example = {};  // one whole command line
  // Prints results to stdout; the error is printed to stderr by the caller.
  // A job's own end is told by `exit_code`, which starts as kSucceeded.
  std::function<absl::Status(const Arguments&, ExitCode* exit_code)> run = {};
};

// Parses the words after the verb: "--flag=value", "--flag value", "--switch",
// "--" (the rest is positional). INVALID_ARGUMENT: unknown flag, value missing
// or superfluous, or a wrong number of positional words.
absl::StatusOr<Arguments> ParseArguments(const Command& command,
                                         absl::Span<const std::string> words);

// Finds the verb in `words`, runs it and returns the process's exit code.
// "help", "help VERB" and "--help" print help.
int RunCommandLine(absl::Span<const Command> commands,
                   absl::Span<const std::string> words);

}  // namespace gla::cli

#endif  // GLA_TOOLS_CLI_COMMAND_H_
