// For the tests of kernels: whatever the emulation finds wrong is a failure.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/emulation/block.h"

namespace moe::emulation {

class KernelTest : public testing::Test {
 protected:
  void TearDown() override { EXPECT_THAT(TakeFindings(), testing::IsEmpty()); }
};

/// The orders in which every kernel has to give the same.
inline constexpr ThreadOrder kThreadOrders[] = {ThreadOrder::kAscending, ThreadOrder::kDescending,
                                                ThreadOrder::kShuffled};

}  // namespace moe::emulation
