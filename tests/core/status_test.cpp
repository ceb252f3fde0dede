#include "core/status.h"

#include <gtest/gtest.h>

#include <memory>

namespace moe {
namespace {

Result<int> Half(int n) {
  if (n % 2 != 0) return InvalidArgument("n ", n, " is odd");
  return n / 2;
}

Result<int> Quarter(int n) {
  MOE_ASSIGN_OR_RETURN(const int half, Half(n));
  return Half(half);
}

Status CheckQuarter(int n) {
  MOE_RETURN_IF_ERROR(Quarter(n).status());
  return Status::Ok();
}

TEST(Status, CarriesCodeAndMessage) {
  const Status status = ResourceExhausted("queue holds ", 3, " of ", 3);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "queue holds 3 of 3");
}

TEST(Status, ContextComesFirst) {
  EXPECT_EQ(NotFound("no such tensor").WithContext("model.safetensors").message(), "model.safetensors: no such tensor");
  EXPECT_TRUE(Status::Ok().WithContext("anything").ok());
}

TEST(Result, PassesValuesAndFailuresOn) {
  EXPECT_EQ(*Quarter(12), 3);
  EXPECT_EQ(Quarter(6).status().message(), "n 3 is odd");
  EXPECT_EQ(CheckQuarter(5).message(), "n 5 is odd");
  EXPECT_TRUE(CheckQuarter(8).ok());
}

TEST(Result, MovesWhatCannotBeCopied) {
  Result<std::unique_ptr<int>> result(std::make_unique<int>(7));
  const std::unique_ptr<int> value = *std::move(result);
  EXPECT_EQ(*value, 7);
}

TEST(ResultDeath, ReadingAFailureStopsWithItsMessage) { EXPECT_DEATH((void)*Half(3), "n 3 is odd"); }

}  // namespace
}  // namespace moe
