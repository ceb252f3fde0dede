// The header of a safetensors file, checked: after this, every tensor's bytes are known to lie inside the file, alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace moe {

/// Where a tensor lies, checked: its bytes are inside the file and are exactly its shape times its element.
struct TensorInfo {
  std::string dtype;                // "F32", "BF16", "F16", …
  std::vector<std::int64_t> shape;  // empty for a scalar; a 0 makes a tensor without bytes
  std::size_t file = 0;             // index into the checkpoint's files
  std::uint64_t offset = 0;         // from the beginning of the file
  std::uint64_t bytes = 0;

  std::uint64_t elements() const;
};

/// As the format says: a file is the header's length (u64, little-endian), the header, the data.
inline constexpr std::uint64_t kSafetensorsPrefixBytes = 8;
inline constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr std::size_t kMaxTensorDims = 8;

/// "(256, 128)"
std::string ShapeText(const std::vector<std::int64_t>& shape);

/// The tensors of a file of `file_bytes` bytes whose header (without the length before it) is `header`. `file` is
/// stored in each. Refused: not JSON, a tensor named twice, unknown dtypes, shapes that overflow or disagree with their
/// bytes, offsets reversed, past the end, overlapping, or leaving bytes that belong to no tensor. Errors name the
/// tensor.
Result<std::map<std::string, TensorInfo>> ParseSafetensorsHeader(std::string_view header, std::uint64_t file_bytes,
                                                                 std::size_t file);

}  // namespace moe
