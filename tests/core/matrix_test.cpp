#include "core/matrix.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>

namespace moe {
namespace {

TEST(MatrixView, AddressesRowsAndColumnsThroughTheStride) {
  std::array<int, 12> data;
  std::iota(data.begin(), data.end(), 0);
  const MatrixView<int> all(data.data(), 3, 3, 4);
  EXPECT_EQ(all(2, 1), 9);
  EXPECT_EQ(all.row(1)[2], 6);
  const MatrixView<const int> part = all.Rows(1, 2).Columns(1, 2);
  EXPECT_EQ(part(0, 0), 5);
  EXPECT_EQ(part(1, 1), 10);
  EXPECT_EQ(part.stride(), 4u);
}

TEST(MatrixViewDeath, RejectsPartsOutside) {
  std::array<int, 4> data{};
  const MatrixView<int> all(data.data(), 2, 2);
  EXPECT_DEATH((void)all.Rows(1, 2), "broken invariant");
}

}  // namespace
}  // namespace moe
