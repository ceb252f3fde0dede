// A program as a user starts it, in a folder of its own: arguments and environment in; exit code, stdout and stderr
// out.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

#include "core/text.h"
#include "test_folders.h"
#include "tests/temporary_folder.h"

namespace moe {

class Program : public testing::Test {
 protected:
  explicit Program(std::string name = "moe_bench") : name_(std::move(name)) {}

  struct Outcome {
    int exit_code = -1;
    std::string out;
    std::string err;
  };

  std::string Read(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(folder_ + "/" + name).rdbuf();
    return text.str();
  }

  pid_t Start(const std::string& arguments, const std::string& environment = "") const {
    const std::string command = Cat("cd '", folder_, "' && exec env ", environment, " '", MOE_BINARY_DIR, "/bin/",
                                    name_, "' ", arguments, " > out 2> err");
    const pid_t child = fork();
    if (child == 0) {
      execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      _exit(127);
    }
    return child;
  }

  Outcome Wait(pid_t child) const {
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, Read("out"), Read("err")};
  }

  Outcome Run(const std::string& arguments, const std::string& environment = "") const {
    return Wait(Start(arguments, environment));
  }

  /// Bad usage: exit code 2, nothing on stdout, one sentence on stderr that has `expected`.
  void ExpectRefused(const std::string& arguments, const std::string& expected) const {
    const Outcome run = Run(arguments);
    EXPECT_EQ(run.exit_code, 2) << arguments << ": " << run.err;
    EXPECT_EQ(run.out, "") << arguments;
    EXPECT_THAT(run.err, testing::HasSubstr(expected)) << arguments;
    EXPECT_THAT(run.err, testing::StartsWith(name_ + ": ")) << arguments;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }

  const std::string name_;
  const TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
};

}  // namespace moe
