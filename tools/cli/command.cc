#include "tools/cli/command.h"

#include <algorithm>
#include <iostream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace gla::cli {
namespace {

const Flag* FindFlag(const Command& command, const std::string& name) {
  for (const Flag& flag : command.flags) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

std::string Usage(const Command& command) {
  return absl::StrCat("gla ", command.verb,
                      command.arguments.empty() ? "" : " ", command.arguments,
                      command.flags.empty() ? "" : " [flags]");
}

void PrintHelp(const Command& command) {
  std::cout << command.summary << "\n\n  " << Usage(command) << "\n";
  if (!command.flags.empty()) std::cout << "\nFlags:\n";
  for (const Flag& flag : command.flags) {
    const std::string left = absl::StrCat(
        "--", flag.name, flag.value.empty() ? "" : "=", flag.value);
    std::cout << absl::StrFormat("  %-28s %s", left, flag.help);
    if (!flag.default_value.empty()) {
      std::cout << " (default " << flag.default_value << ")";
    }
    std::cout << "\n";
  }
  std::cout << "\nExample:\n  " << command.example << "\n";
}

void PrintOverview(absl::Span<const Command> commands, std::ostream& out) {
  out << "gla trains and serves GLA Transformers.\n\n";
  for (const Command& command : commands) {
    out << absl::StrFormat("  gla %-22s %s\n", command.verb, command.summary);
  }
  out << "  gla help VERB              flags and an example\n\n"
         "Exit codes: 0 success, 1 failed, 2 usage, 3 cancelled, 4 connection "
         "lost,\n5 not found, 6 precondition, 7 queue full, 8 deadline, 9 data "
         "loss.\n";
}

// The command whose verb `words` begin with, the longest one.
const Command* FindCommand(absl::Span<const Command> commands,
                           absl::Span<const std::string> words,
                           size_t* verb_words) {
  const Command* found = nullptr;
  for (const Command& command : commands) {
    const std::vector<std::string> verb = absl::StrSplit(command.verb, ' ');
    if (verb.size() <= words.size() &&
        std::equal(verb.begin(), verb.end(), words.begin()) &&
        (found == nullptr || verb.size() > *verb_words)) {
      found = &command;
      *verb_words = verb.size();
    }
  }
  return found;
}

int Help(absl::Span<const Command> commands,
         absl::Span<const std::string> words) {
  size_t verb_words = 0;
  if (words.empty()) {
    PrintOverview(commands, std::cout);
    return kSucceeded;
  }
  if (const Command* command = FindCommand(commands, words, &verb_words)) {
    PrintHelp(*command);
    return kSucceeded;
  }
  std::cerr << "gla: no verb \"" << absl::StrJoin(words, " ")
            << "\"; `gla help` lists them\n";
  return kUsage;
}

absl::Status CheckPositional(const Command& command,
                             const Arguments& arguments) {
  const int given = static_cast<int>(arguments.positional.size());
  if (given < command.min_positional) {
    return absl::InvalidArgumentError(absl::StrCat(
        "missing ", command.arguments, "; usage: ", Usage(command)));
  }
  if (given > command.max_positional) {
    return absl::InvalidArgumentError(absl::StrCat(
        "unexpected argument \"", arguments.positional[command.max_positional],
        "\"; usage: ", Usage(command)));
  }
  return absl::OkStatus();
}

}  // namespace

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kSucceeded;
    case absl::StatusCode::kInvalidArgument:
      return kUsage;
    case absl::StatusCode::kCancelled:
      return kCancelled;
    case absl::StatusCode::kUnavailable:
      return kConnectionLost;
    case absl::StatusCode::kNotFound:
      return kNotFound;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return kPrecondition;
    case absl::StatusCode::kResourceExhausted:
      return kQueueFull;
    case absl::StatusCode::kDeadlineExceeded:
      return kDeadline;
    case absl::StatusCode::kDataLoss:
      return kDataLoss;
    default:
      return kFailed;
  }
}

std::string Arguments::Get(const std::string& flag) const {
  const auto it = flags.find(flag);
  return it == flags.end() ? "" : it->second.back();
}

std::vector<std::string> Arguments::GetAll(const std::string& flag) const {
  const auto it = flags.find(flag);
  return it == flags.end() ? std::vector<std::string>() : it->second;
}

absl::Status Arguments::BadNumber(const std::string& flag) const {
  return absl::InvalidArgumentError(absl::StrCat(
      "--", flag, ": want a number in range, got \"", Get(flag), "\""));
}

absl::StatusOr<double> Arguments::GetDouble(const std::string& flag) const {
  double value = 0;
  if (absl::SimpleAtod(Get(flag), &value)) return value;
  return BadNumber(flag);
}

absl::StatusOr<Arguments> ParseArguments(const Command& command,
                                         absl::Span<const std::string> words) {
  Arguments arguments;
  bool only_positional = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (only_positional || word.size() < 3 || !absl::StartsWith(word, "--")) {
      if (word == "--" && !only_positional) {
        only_positional = true;
      } else {
        arguments.positional.push_back(word);
      }
      continue;
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(2, equals - 2);
    const Flag* flag = FindFlag(command, name);
    if (flag == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown flag --", name, "; `gla help ", command.verb,
                       "` lists all"));
    }
    std::string value;
    if (equals != std::string::npos) {
      if (flag->value.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat("--", name, " takes no value"));
      }
      value = word.substr(equals + 1);
    } else if (!flag->value.empty()) {
      if (++i == words.size()) {
        return absl::InvalidArgumentError(
            absl::StrCat("--", name, " needs a value: ", flag->value));
      }
      value = words[i];
    }
    arguments.flags[name].push_back(std::move(value));
  }
  for (const Flag& flag : command.flags) {
    if (!flag.default_value.empty() && !arguments.Has(flag.name)) {
      arguments.flags[flag.name].push_back(flag.default_value);
    }
  }
  const absl::Status status = CheckPositional(command, arguments);
  if (!status.ok()) return status;
  return arguments;
}

int RunCommandLine(absl::Span<const Command> commands,
                   absl::Span<const std::string> words) {
  if (words.empty()) {
    PrintOverview(commands, std::cerr);
    return kUsage;
  }
  if (words[0] == "help" || words[0] == "--help") {
    return Help(commands, words.subspan(1));
  }
  size_t verb_words = 0;
  const Command* command = FindCommand(commands, words, &verb_words);
  if (command == nullptr) return Help(commands, words);
  const auto rest = words.subspan(verb_words);
  if (std::find(rest.begin(), rest.end(), "--help") != rest.end()) {
    PrintHelp(*command);
    return kSucceeded;
  }
  const auto arguments = ParseArguments(*command, rest);
  ExitCode exit_code = kSucceeded;
  const absl::Status status = arguments.ok()
                                  ? command->run(*arguments, &exit_code)
                                  : arguments.status();
  if (!status.ok()) {
    std::cerr << "gla: " << status.message() << "\n";
    return ExitCodeOf(status);
  }
  return exit_code;
}

}  // namespace gla::cli
