#include "kernels/packed_matrix.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "core/check.h"
#include "kernels/kernels.h"
#include "kernels/quantize.h"

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
    case WeightType::kInt8:
    case WeightType::kInt4: break;
  }
  return nullptr;
}

PackRowFunction FindPackRow(WeightType source, WeightType target) {
  PackRowFunction function = nullptr;
  switch (target) {
    case WeightType::kF32: function = PackRowTo<WeightType::kF32>(source); break;
    case WeightType::kBf16: function = PackRowTo<WeightType::kBf16>(source); break;
    case WeightType::kF16: function = PackRowTo<WeightType::kF16>(source); break;
    case WeightType::kInt8:
    case WeightType::kInt4: break;
  }
  MOE_CHECK(function != nullptr, "unknown weight type");
  return function;
}

// A panel's scales start at a cache line, and so does the next panel.
std::size_t WholeLines(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::size_t ValueBytes(std::size_t cols, WeightType type) {
  if (!IsQuantized(type)) return cols * PackedMatrix::kPanelWidth * BytesPerWeight(type);
  const std::size_t inputs = GroupsOf(cols, type) * GroupSize(type);
  return inputs * PackedMatrix::kPanelWidth / (type == WeightType::kInt4 ? 2 : 1);
}

std::size_t PanelBytes(std::size_t cols, WeightType type) {
  if (!IsQuantized(type)) return ValueBytes(cols, type);
  const std::size_t scales = GroupsOf(cols, type) * PackedMatrix::kPanelWidth * sizeof(std::uint16_t);
  return ValueBytes(cols, type) + WholeLines(scales);
}

}  // namespace

/// Walks the rows of the parts, one below the other.
class PackedMatrix::RowCursor {
 public:
  explicit RowCursor(std::span<const WeightView> parts) : parts_(parts) {}

  /// A view of one row.
  WeightView Next() {
    while (part_ < parts_.size() && row_ == parts_[part_].rows) {
      ++part_;
      row_ = 0;
    }
    MOE_CHECK(part_ < parts_.size());
    const WeightView& part = parts_[part_];
    return {part.type, part.data + row_++ * part.cols * BytesPerWeight(part.type), 1, part.cols};
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
    case WeightType::kInt8:
    case WeightType::kInt4: break;
  }
  MOE_CHECK(false, "a quantized weight has no view");
  return 0;
}

/// Writes panels, one after the other.
class PackedMatrix::PanelPacker {
 public:
  explicit PanelPacker(PackedMatrix& matrix) : matrix_(matrix) {
    if (!IsQuantized(matrix.type_)) return;
    const std::size_t groups = GroupsOf(matrix.cols_, matrix.type_);
    values_.resize(kPanelWidth * groups * GroupSize(matrix.type_));
    scales_.resize(groups);
  }

  /// `rows`: up to 16, those that the matrix has; the others are zeros.
  void Pack(std::size_t index, std::span<const WeightView> rows) {
    std::byte* const panel = matrix_.data_.data() + index * matrix_.panel_bytes_;
    IsQuantized(matrix_.type_) ? PackIntegers(panel, rows) : PackFloats(panel, rows);
  }

 private:
  void PackFloats(std::byte* panel, std::span<const WeightView> rows) const {
    // Columns that are packed of each of the 16 rows before the next ones: 16 KiB of fp32 stay in the first-level cache
    // while the rows are interleaved.
    constexpr std::size_t kBlockColumns = 256;
    const std::size_t width = BytesPerWeight(matrix_.type_);
    for (std::size_t begin = 0; begin < matrix_.cols_; begin += kBlockColumns) {
      const std::size_t count = std::min(kBlockColumns, matrix_.cols_ - begin);
      for (std::size_t lane = 0; lane < rows.size(); ++lane) {
        const WeightView& row = rows[lane];
        const std::size_t row_width = BytesPerWeight(row.type);
        FindPackRow(row.type, matrix_.type_)({row.data + begin * row_width, count * row_width},
                                             panel + (begin * kPanelWidth + lane) * width);
      }
    }
  }

  void PackIntegers(std::byte* panel, std::span<const WeightView> rows) {
    const std::size_t inputs = values_.size() / kPanelWidth;
    const std::span<std::uint8_t> values(values_);
    std::byte* const scales = panel + matrix_.value_bytes_;
    std::ranges::fill(values, static_cast<std::uint8_t>(ZeroPoint(matrix_.type_)));
    for (std::size_t lane = 0; lane < rows.size(); ++lane) {
      SimdKernels().QuantizeWeights(rows[lane], matrix_.type_, values.subspan(lane * inputs, inputs), scales_);
      for (std::size_t g = 0; g < scales_.size(); ++g)
        std::memcpy(scales + (g * kPanelWidth + lane) * sizeof(std::uint16_t), &scales_[g], sizeof(std::uint16_t));
    }
    const std::size_t step = matrix_.type_ == WeightType::kInt4 ? 8 : 4;  // inputs in four bytes
    for (std::size_t k = 0; k < inputs; k += step) {
      for (std::size_t lane = 0; lane < kPanelWidth; ++lane) {
        const std::uint8_t* from = values_.data() + lane * inputs + k;
        std::uint32_t quad = 0;
        std::memcpy(&quad, from, sizeof(quad));
        if (step == 8) {
          std::uint32_t high = 0;
          std::memcpy(&high, from + 4, sizeof(high));
          quad |= high << 4;
        }
        std::memcpy(panel, &quad, sizeof(quad));
        panel += sizeof(quad);
      }
    }
  }

  PackedMatrix& matrix_;
  std::vector<std::uint8_t> values_;   // (16, inputs) of the panel under way
  std::vector<std::uint16_t> scales_;  // (groups) of a row
};

PackedMatrix::PackedMatrix(WeightType type, std::size_t rows, std::size_t cols)
    : type_(type),
      rows_(rows),
      cols_(cols),
      value_bytes_(ValueBytes(cols, type)),
      panel_bytes_(PanelBytes(cols, type)),
      data_(panels() * panel_bytes_) {}

float PackedMatrix::at(std::size_t row, std::size_t col) const {
  MOE_CHECK(row < rows_ && col < cols_);
  const std::byte* const values = panel(row / kPanelWidth);
  const std::size_t lane = row % kPanelWidth;
  if (!IsQuantized(type_)) {
    const WeightView element{type_, values + (col * kPanelWidth + lane) * BytesPerWeight(type_), 1, 1};
    return element.at(0, 0);
  }
  const std::size_t scale = (col / GroupSize(type_) * kPanelWidth + lane) * sizeof(std::uint16_t);
  const float unit = Bf16ToF32(LoadUnaligned<std::uint16_t>(scales(row / kPanelWidth) + scale));
  const bool nibbles = type_ == WeightType::kInt4;
  const std::size_t step = nibbles ? 8 : 4;
  auto stored = static_cast<int>(values[(col / step * kPanelWidth + lane) * 4 + col % 4]);
  if (nibbles) stored = col % step < 4 ? stored & 15 : stored >> 4;
  return unit * static_cast<float>(stored - ZeroPoint(type_));
}

PackedMatrix PackedMatrix::Pack(std::span<const WeightView> parts, WeightType type) {
  std::size_t rows = 0;
  const std::size_t cols = parts.empty() ? 0 : parts.front().cols;
  for (const WeightView& part : parts) {
    MOE_CHECK(part.cols == cols, "parts of one packed matrix differ in their number of columns");
    rows += part.rows;
  }
  PackedMatrix packed(type, rows, cols);
  PanelPacker packer(packed);
  RowCursor cursor(parts);
  for (std::size_t index = 0; index < packed.panels(); ++index) {
    std::array<WeightView, kPanelWidth> sources;
    const std::size_t count = std::min(kPanelWidth, rows - index * kPanelWidth);
    for (std::size_t row = 0; row < count; ++row) sources[row] = cursor.Next();
    packer.Pack(index, std::span(sources).first(count));
  }
  return packed;
}

PackedMatrix PackedMatrix::Pack(std::size_t rows, std::size_t cols, WeightType type, ReadRows read) {
  PackedMatrix packed(type, rows, cols);
  PanelPacker packer(packed);
  std::vector<float> staging(kPanelWidth * cols);
  for (std::size_t index = 0; index < packed.panels(); ++index) {
    const std::size_t first = index * kPanelWidth;
    const std::size_t count = std::min(kPanelWidth, rows - first);
    read(first, MatrixView<float>(staging.data(), count, cols));
    std::array<WeightView, kPanelWidth> sources;
    for (std::size_t row = 0; row < count; ++row) {
      sources[row] = {WeightType::kF32, reinterpret_cast<const std::byte*>(staging.data() + row * cols), 1, cols};
    }
    packer.Pack(index, std::span(sources).first(count));
  }
  return packed;
}

}  // namespace moe
