#include "kernels/packed_matrix.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "core/check.h"

namespace moe {
namespace {

/// How one format is read from memory of any alignment and written to it.
template <WeightType kType>
struct Format;

template <>
struct Format<WeightType::kF32> {
  using Stored = float;
  static float Widen(Stored value) { return value; }
  static Stored Narrow(float value) { return value; }
};

template <>
struct Format<WeightType::kBf16> {
  using Stored = std::uint16_t;
  static float Widen(Stored value) { return Bf16ToF32(value); }
  static Stored Narrow(float value) { return F32ToBf16(value); }
};

template <>
struct Format<WeightType::kF16> {
  using Stored = std::uint16_t;
  static float Widen(Stored value) { return F16ToF32(value); }
  static Stored Narrow(float value) { return F32ToF16(value); }
};

template <typename T>
T LoadUnaligned(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

/// Elements of `source` (contiguous) to every 16th element from `target` on.
template <WeightType kSource, WeightType kTarget>
void PackRow(std::span<const std::byte> source, std::byte* target) {
  using Source = typename Format<kSource>::Stored;
  using Target = typename Format<kTarget>::Stored;
  for (std::size_t offset = 0; offset < source.size(); offset += sizeof(Source)) {
    if constexpr (kSource == kTarget) {  // the bits pass, NaN payloads too
      std::memcpy(target, source.data() + offset, sizeof(Target));
    } else {
      const float value = Format<kSource>::Widen(LoadUnaligned<Source>(source.data() + offset));
      const Target narrowed = Format<kTarget>::Narrow(value);
      std::memcpy(target, &narrowed, sizeof(Target));
    }
    target += PackedMatrix::kPanelWidth * sizeof(Target);
  }
}

using PackRowFunction = void (*)(std::span<const std::byte>, std::byte*);

template <WeightType kTarget>
PackRowFunction PackRowTo(WeightType source) {
  switch (source) {
    case WeightType::kF32: return &PackRow<WeightType::kF32, kTarget>;
    case WeightType::kBf16: return &PackRow<WeightType::kBf16, kTarget>;
    case WeightType::kF16: return &PackRow<WeightType::kF16, kTarget>;
  }
  return nullptr;
}

PackRowFunction FindPackRow(WeightType source, WeightType target) {
  PackRowFunction function = nullptr;
  switch (target) {
    case WeightType::kF32: function = PackRowTo<WeightType::kF32>(source); break;
    case WeightType::kBf16: function = PackRowTo<WeightType::kBf16>(source); break;
    case WeightType::kF16: function = PackRowTo<WeightType::kF16>(source); break;
  }
  MOE_CHECK(function != nullptr, "unknown weight type");
  return function;
}

}  // namespace

/// A row of the result, or none past the last row.
struct PackedMatrix::SourceRow {
  WeightType type = WeightType::kF32;
  const std::byte* data = nullptr;
};

/// Walks the rows of the parts, one below the other.
class PackedMatrix::RowCursor {
 public:
  explicit RowCursor(std::span<const WeightView> parts) : parts_(parts) {}

  SourceRow Next() {
    while (part_ < parts_.size() && row_ == parts_[part_].rows) {
      ++part_;
      row_ = 0;
    }
    if (part_ == parts_.size()) return {};
    const WeightView& part = parts_[part_];
    return {part.type, part.data + row_++ * part.cols * BytesPerWeight(part.type)};
  }

 private:
  std::span<const WeightView> parts_;
  std::size_t part_ = 0;
  std::size_t row_ = 0;
};

float WeightView::at(std::size_t row, std::size_t col) const {
  MOE_CHECK(row < rows && col < cols);
  const std::byte* element = data + (row * cols + col) * BytesPerWeight(type);
  switch (type) {
    case WeightType::kF32: return LoadUnaligned<float>(element);
    case WeightType::kBf16: return Bf16ToF32(LoadUnaligned<std::uint16_t>(element));
    case WeightType::kF16: return F16ToF32(LoadUnaligned<std::uint16_t>(element));
  }
  MOE_CHECK(false, "unknown weight type");
  return 0;
}

PackedMatrix::PackedMatrix(WeightType type, std::size_t rows, std::size_t cols)
    : type_(type), rows_(rows), cols_(cols), data_(panels() * cols * kPanelWidth * BytesPerWeight(type)) {}

void PackedMatrix::PackPanel(std::size_t index, std::span<const SourceRow> sources) {
  // Columns that are packed of each of the 16 rows before the next ones: 16 KiB of fp32 stay in the first-level cache
  // while the rows are interleaved.
  constexpr std::size_t kBlockColumns = 256;
  const std::size_t width = BytesPerWeight(type_);
  std::byte* panel = data_.data() + index * cols_ * kPanelWidth * width;
  for (std::size_t begin = 0; begin < cols_; begin += kBlockColumns) {
    const std::size_t count = std::min(kBlockColumns, cols_ - begin);
    for (std::size_t lane = 0; lane < sources.size(); ++lane) {
      const SourceRow& source = sources[lane];
      if (source.data == nullptr) continue;  // padding, zero already
      const std::size_t source_width = BytesPerWeight(source.type);
      FindPackRow(source.type, type_)({source.data + begin * source_width, count * source_width},
                                      panel + (begin * kPanelWidth + lane) * width);
    }
  }
}

PackedMatrix PackedMatrix::Pack(std::span<const WeightView> parts, WeightType type) {
  std::size_t rows = 0;
  const std::size_t cols = parts.empty() ? 0 : parts.front().cols;
  for (const WeightView& part : parts) {
    MOE_CHECK(part.cols == cols, "parts of one packed matrix differ in their number of columns");
    rows += part.rows;
  }
  PackedMatrix packed(type, rows, cols);
  RowCursor cursor(parts);
  for (std::size_t index = 0; index < packed.panels(); ++index) {
    std::array<SourceRow, kPanelWidth> sources;
    for (SourceRow& source : sources) source = cursor.Next();
    packed.PackPanel(index, sources);
  }
  return packed;
}

PackedMatrix PackedMatrix::Pack(std::size_t rows, std::size_t cols, WeightType type, ReadRows read) {
  PackedMatrix packed(type, rows, cols);
  std::vector<float> staging(kPanelWidth * cols);
  for (std::size_t index = 0; index < packed.panels(); ++index) {
    const std::size_t first = index * kPanelWidth;
    const std::size_t count = std::min(kPanelWidth, rows - first);
    read(first, MatrixView<float>(staging.data(), count, cols));
    std::array<SourceRow, kPanelWidth> sources;
    for (std::size_t row = 0; row < count; ++row) {
      sources[row] = {WeightType::kF32, reinterpret_cast<const std::byte*>(staging.data() + row * cols)};
    }
    packed.PackPanel(index, sources);
  }
  return packed;
}

}  // namespace moe
