#include "kernels/kv_type.h"

#include "core/check.h"
#include "kernels/weight_type.h"

namespace moe {
namespace {

/// `rows` as elements of the type that `convert` gives, to out[r * position_step + i * element_step].
template <typename Element, typename Convert>
void Store(MatrixView<const float> rows, std::size_t position_step, std::size_t element_step, std::span<std::byte> out,
           const Convert& convert) {
  if (rows.rows() == 0 || rows.cols() == 0) return;
  MOE_CHECK(((rows.rows() - 1) * position_step + (rows.cols() - 1) * element_step + 1) * sizeof(Element) <= out.size());
  auto* const to = reinterpret_cast<Element*>(out.data());
  if (element_step == 1) {
    for (std::size_t r = 0; r < rows.rows(); ++r) {
      const float* row = rows.row(r).data();
      for (std::size_t i = 0; i < rows.cols(); ++i) to[r * position_step + i] = convert(row[i]);
    }
    return;
  }
  // All positions of one element lie side by side, in one cache line or two.
  const float* from = rows.data();
  for (std::size_t i = 0; i < rows.cols(); ++i)
    for (std::size_t r = 0; r < rows.rows(); ++r) to[i * element_step + r] = convert(from[r * rows.stride() + i]);
}

void Store(MatrixView<const float> rows, KvType type, std::size_t position_step, std::size_t element_step,
           std::span<std::byte> out) {
  if (type == KvType::kF32) {
    Store<float>(rows, position_step, element_step, out, [](float value) { return value; });
  } else {
    Store<std::uint16_t>(rows, position_step, element_step, out, F32ToBf16);
  }
}

}  // namespace

std::string_view Name(KvType type) { return type == KvType::kF32 ? "f32" : "bf16"; }

std::optional<KvType> ParseKvType(std::string_view name) {
  for (const KvType type : {KvType::kF32, KvType::kBf16}) {
    if (name == Name(type)) return type;
  }
  return std::nullopt;
}

void StoreKvRows(MatrixView<const float> rows, KvType type, std::span<std::byte> out) {
  Store(rows, type, rows.cols(), 1, out);
}

void StoreKvColumns(MatrixView<const float> rows, KvType type, std::size_t stride, std::span<std::byte> out) {
  MOE_CHECK(rows.rows() <= stride);
  Store(rows, type, 1, stride, out);
}

}  // namespace moe
