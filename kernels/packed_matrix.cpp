#include "kernels/packed_matrix.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/check.h"

namespace moe {
namespace {

/// A row of the result, or none past the last row.
struct SourceRow {
  WeightType type = WeightType::kF32;
  const std::byte* data = nullptr;
};

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

/// Walks the rows of the parts, one below the other.
class RowCursor {
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

}  // namespace

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

PackedMatrix PackedMatrix::Pack(std::span<const WeightView> parts, WeightType type) {
  // Columns that are packed of each of the 16 rows before the next ones: 16 KiB of fp32 stay in the first-level cache
  // while the rows are interleaved.
  constexpr std::size_t kBlockColumns = 256;

  PackedMatrix packed;
  packed.type_ = type;
  packed.cols_ = parts.empty() ? 0 : parts.front().cols;
  for (const WeightView& part : parts) {
    MOE_CHECK(part.cols == packed.cols_, "parts of one packed matrix differ in their number of columns");
    packed.rows_ += part.rows;
  }
  const std::size_t width = BytesPerWeight(type);
  packed.data_ = AlignedBuffer<std::byte>(packed.panels() * packed.cols_ * kPanelWidth * width);

  RowCursor cursor(parts);
  for (std::size_t index = 0; index < packed.panels(); ++index) {
    std::byte* panel = packed.data_.data() + index * packed.cols_ * kPanelWidth * width;
    std::array<SourceRow, kPanelWidth> sources;
    for (SourceRow& source : sources) source = cursor.Next();
    for (std::size_t begin = 0; begin < packed.cols_; begin += kBlockColumns) {
      const std::size_t count = std::min(kBlockColumns, packed.cols_ - begin);
      for (std::size_t lane = 0; lane < kPanelWidth; ++lane) {
        const SourceRow& source = sources[lane];
        if (source.data == nullptr) continue;  // padding, zero already
        const std::size_t source_width = BytesPerWeight(source.type);
        FindPackRow(source.type, type)({source.data + begin * source_width, count * source_width},
                                       panel + (begin * kPanelWidth + lane) * width);
      }
    }
  }
  return packed;
}

}  // namespace moe
