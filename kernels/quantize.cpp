#include "kernels/quantize.h"

namespace moe {
namespace {

constexpr std::size_t kSmallestGroup = GroupSize(WeightType::kInt4);
constexpr std::size_t kLargestGroup = GroupSize(WeightType::kInt8);
constexpr std::size_t kLine = kAlignment / sizeof(float);

/// Places for `rows` values of each group: an odd number of cache lines, so that the groups of a tile's rows do not all
/// fall into the same few sets of the cache; no more than needed where they fit one.
std::size_t StrideFor(std::size_t rows) { return rows <= kLine ? rows : ((rows + kLine - 1) / kLine | 1) * kLine; }

}  // namespace

QuantizedRows::QuantizedRows(std::size_t max_rows, std::size_t max_cols)
    : values_(max_rows * ((max_cols + kLargestGroup - 1) / kLargestGroup * kLargestGroup)),
      scales_(StrideFor(max_rows) * GroupsOf(max_cols, WeightType::kInt4)),
      offsets_(scales_.size()) {}

void QuantizedRows::Shape(std::size_t rows, std::size_t cols, WeightType type) {
  view_ = {.values = values_.data(),
           .scales = scales_.data(),
           .offsets = offsets_.data(),
           .stride = StrideFor(rows),
           .rows = rows,
           .cols = cols,
           .group = GroupSize(type),
           .groups = GroupsOf(cols, type)};
  MOE_CHECK(rows * view_.groups * view_.group <= values_.size() && view_.groups * view_.stride <= scales_.size());
}

QuantizedGroups QuantizedRows::Groups(std::size_t row, std::size_t begin, std::size_t count) {
  MOE_CHECK(row < view_.rows && begin % view_.group == 0 && begin + count <= view_.cols);
  const std::size_t first = begin / view_.group;
  const std::size_t groups = (count + view_.group - 1) / view_.group;
  return {.values = values_.span().subspan((row * view_.groups + first) * view_.group, groups * view_.group),
          .scales = scales_.data() + first * view_.stride + row,
          .offsets = offsets_.data() + first * view_.stride + row,
          .stride = view_.stride};
}

}  // namespace moe
