// What tests of a file's reader share: the file, and what the reader says of one that it must refuse.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <string_view>

#include "core/status.h"
#include "tests/temporary_folder.h"

namespace moe {

template <typename Content>
class FileTest : public testing::Test {
 protected:
  using Reader = Result<Content> (*)(const std::filesystem::path&);
  explicit FileTest(Reader read) : read_(read) {}

  Result<Content> Read(std::string_view text) const {
    folder_.Write("read.json", text);
    return read_(path_);
  }
  /// The message for a file that must be refused; it names the file.
  std::string Refusal(std::string_view text) const {
    const Status status = Read(text).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(status.message(), testing::HasSubstr(path_.string()));
    return status.message();
  }

 private:
  const Reader read_;
  const TemporaryFolder folder_;

 protected:
  const std::filesystem::path path_ = folder_.path() / "read.json";
};

}  // namespace moe
