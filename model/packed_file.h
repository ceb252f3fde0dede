// A file of packed matrices: written once, read as it is, used only if it is exactly what the reader expects
// (docs/weight-cache.md has the layout).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/status.h"
#include "kernels/packed_matrix.h"
#include "kernels/weight_type.h"

namespace moe {

/// What a file is of. Nothing in a file is believed: it is compared with what its reader knows.
struct PackedFileKey {
  std::uint64_t checkpoint = 0;  // Checkpoint::stamp
  std::uint64_t recipe = 0;      // of the weights: their tensors, slices and shapes
  WeightType type = WeightType::kF32;
};

struct PackedShape {
  std::size_t rows = 0;
  std::size_t cols = 0;
};

/// The matrices of a file that has them in these shapes, which belong to `key.recipe`. NOT_FOUND when there is no file;
/// INVALID_ARGUMENT with the reason, without the path, when it is stale or damaged in any bit. May run beside any
/// number of readers and writers of the file.
Result<std::vector<PackedMatrix>> ReadPackedFile(const std::filesystem::path& path, const PackedFileKey& key,
                                                 std::span<const PackedShape> shapes);

/// Puts the file into its place at once when it is whole; what was there stays until then. Makes the folders that it
/// needs. False: another process or thread is writing this file just now. RESOURCE_EXHAUSTED with the reason, without
/// the path, when it cannot be written; then nothing of it stays.
Result<bool> WritePackedFile(const std::filesystem::path& path, const PackedFileKey& key,
                             std::span<const PackedMatrix* const> matrices);

}  // namespace moe
