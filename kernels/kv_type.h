// The number formats that the KV cache holds keys, values and latents in, and how they are written to its pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "core/matrix.h"

namespace moe {

/// Attention computes in fp32 with either: what is stored is rounded once and widened exactly.
enum class KvType : std::uint8_t { kF32, kBf16 };

/// As users write it: "f32", "bf16".
std::string_view Name(KvType type);
std::optional<KvType> ParseKvType(std::string_view name);

constexpr std::size_t BytesPerElement(KvType type) { return type == KvType::kF32 ? 4 : 2; }

// Stores of rows (positions, width) as `type`. Narrowing rounds to nearest, ties to even, and keeps NaN. `out` holds
// elements of the type, aligned to one of them; it ends no earlier than what is stored.

/// Element (r, i) goes to place r * width + i.
void StoreKvRows(MatrixView<const float> rows, KvType type, std::span<std::byte> out);
/// Element (r, i) goes to place i * stride + r: columns, side by side.
void StoreKvColumns(MatrixView<const float> rows, KvType type, std::size_t stride, std::span<std::byte> out);

}  // namespace moe
