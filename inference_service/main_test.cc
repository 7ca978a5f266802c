// The program itself: how it starts, refuses to start, and ends.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "inference_service/testing/tiny_checkpoint.h"

namespace gla::inference {
namespace {

// A gla_inference process whose stderr can be read.
class Program {
 public:
  explicit Program(std::vector<std::string> flags) {
    flags.insert(flags.begin(), "inference_service/gla_inference");
    std::vector<char*> argv;
    for (std::string& flag : flags) argv.push_back(flag.data());
    argv.push_back(nullptr);
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    EXPECT_EQ(
        posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ),
        0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    stderr_ = fdopen(ends[0], "r");
  }
  ~Program() { fclose(stderr_); }

  // The next line, empty at the end.
  std::string ReadLine() {
    char buffer[4096] = "";
    return fgets(buffer, sizeof(buffer), stderr_) == nullptr ? "" : buffer;
  }
  void ReadUntil(const std::string& text) {
    for (std::string line = ReadLine(); !line.empty(); line = ReadLine()) {
      if (line.find(text) != std::string::npos) return;
    }
    ADD_FAILURE() << "never said: " << text;
  }
  void Signal(int signal) { kill(pid_, signal); }
  int ExitCode() {
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = 0;
  FILE* stderr_ = nullptr;
};

// Runs a program that refuses to start, and returns the one line it says.
std::string Refusal(const std::vector<std::string>& flags) {
  Program program(flags);
  const std::string line = program.ReadLine();
  EXPECT_EQ(program.ReadLine(), "");
  EXPECT_EQ(program.ExitCode(), 1);
  return line;
}

TEST(Main, ServesUntilASignalAndEndsWithZero) {
  const std::string tiny = WriteTinyCheckpoint("tiny", 1);
  for (int signal : {SIGTERM, SIGINT}) {
    const std::string port_file = tiny + "/port";
    Program program({"--model=one=" + tiny, "--model=two=" + tiny,
                     "--state_slots=2", "--threads=1",
                     "--port_file=" + port_file});
    program.ReadUntil("serving models/one, models/two on port ");
    int port = 0;
    std::ifstream(port_file) >> port;
    EXPECT_GT(port, 0);
    program.Signal(signal);
    program.ReadUntil("finishing");
    EXPECT_EQ(program.ExitCode(), 0);
  }
}

TEST(Main, NamesThePortThatIsInUse) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size),
            0);
  const std::string where =
      "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  EXPECT_EQ(Refusal({"--listen=" + where}),
            "gla_inference: cannot listen on " + where +
                ": the port is in use or the address is not this machine's\n");
  close(listener);
}

TEST(Main, RefusesWhatItCannotDo) {
  EXPECT_EQ(Refusal({"--device=cuda"}),
            "gla_inference: --device=cuda: this build serves on the CPU "
            "only\n");
  EXPECT_EQ(Refusal({"--device=tpu"}),
            "gla_inference: --device: want auto, cpu or cuda, got tpu\n");
  EXPECT_EQ(Refusal({"--state_slots=0"}),
            "gla_inference: --state_slots: want at least 1\n");
  EXPECT_EQ(Refusal({"--model=tiny"}),
            "gla_inference: --model: want NAME=DIR, got tiny\n");
  EXPECT_TRUE(Refusal({"--model=tiny=/none"})
                  .starts_with("gla_inference: --model=tiny=/none: "));
}

}  // namespace
}  // namespace gla::inference
