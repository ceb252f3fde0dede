#include "kernels/quantize.h"

namespace moe {
namespace {

constexpr std::size_t kSmallestGroup = GroupSize(WeightType::kInt4);
constexpr std::size_t kLargestGroup = GroupSize(WeightType::kInt8);

}  // namespace

QuantizedRows::QuantizedRows(std::size_t max_rows, std::size_t max_cols)
    : values_(max_rows * ((max_cols + kLargestGroup - 1) / kLargestGroup * kLargestGroup)),
      scales_(values_.size() / kSmallestGroup),
      sums_(values_.size() / kSmallestGroup) {}

void QuantizedRows::Shape(std::size_t rows, std::size_t cols, WeightType type) {
  view_ = {.values = values_.data(),
           .scales = scales_.data(),
           .sums = sums_.data(),
           .rows = rows,
           .cols = cols,
           .group = GroupSize(type),
           .groups = GroupsOf(cols, type)};
  MOE_CHECK(rows * view_.groups * view_.group <= values_.size());
}

QuantizedGroups QuantizedRows::Groups(std::size_t row, std::size_t begin, std::size_t count) {
  MOE_CHECK(row < view_.rows && begin % view_.group == 0 && begin + count <= view_.cols);
  const std::size_t first = row * view_.groups + begin / view_.group;
  const std::size_t groups = (count + view_.group - 1) / view_.group;
  return {.values = values_.span().subspan(first * view_.group, groups * view_.group),
          .scales = scales_.span().subspan(first, groups),
          .sums = sums_.span().subspan(first, groups)};
}

}  // namespace moe
