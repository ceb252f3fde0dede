// moe_bench as a user starts it: arguments and environment in; exit code, stdout and stderr out.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "core/text.h"

namespace moe {

class Program : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/moe-bench-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { ASSERT_EQ(std::system(("rm -r '" + folder_ + "'").c_str()), 0); }

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
    const std::string command = Cat("exec env ", environment, " '", MOE_BINARY_DIR, "/bin/moe_bench' ", arguments,
                                    " > '", folder_, "/out' 2> '", folder_, "/err'");
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

  std::string folder_;
};

}  // namespace moe
