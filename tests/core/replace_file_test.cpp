#include "core/replace_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>

#include "tests/temporary_folder.h"

namespace moe {
namespace {

class ReplaceFileTest : public ::testing::Test {
 protected:
  static std::string Text(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  auto files() const {
    const std::filesystem::directory_iterator all(folder_);
    return std::distance(begin(all), end(all));
  }

  const TemporaryFolder temporary_;
  const std::filesystem::path folder_ = temporary_.path();
};

TEST_F(ReplaceFileTest, TakesThePlaceOfWhatWasThere) {
  EXPECT_TRUE(ReplaceFile(folder_ / "a", "a long first text"));
  EXPECT_TRUE(ReplaceFile(folder_ / "a", "second\n"));
  EXPECT_EQ(Text(folder_ / "a"), "second\n");
  EXPECT_EQ(files(), 1);
}

TEST_F(ReplaceFileTest, LeavesNothingWhereItFails) {
  EXPECT_FALSE(ReplaceFile(folder_ / "none" / "a", "text"));
  std::filesystem::create_directory(folder_ / "b");
  std::ofstream(folder_ / "b" / "c") << "kept";
  EXPECT_FALSE(ReplaceFile(folder_ / "b", "text"));
  EXPECT_EQ(Text(folder_ / "b" / "c"), "kept");
  EXPECT_EQ(files(), 1);
}

}  // namespace
}  // namespace moe
