// An independent reading of checkpoints and packed matrices, to compare the model library with.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/packed_matrix.h"
#include "model/weights.h"

namespace moe {

/// The values of a tensor in whichever file of the folder has it, F8_E4M3 ones times their NAME_scale_inv. The latest
/// folder stays in memory: files of a folder must not change between calls.
std::vector<float> StoredValues(const std::filesystem::path& folder, const std::string& name);

/// Those of several tensors, one after the other.
std::vector<float> StoredValues(const std::filesystem::path& folder, const std::vector<std::string>& names);

float ReadElement(const std::byte* at, WeightType type);

/// Whether a file of the folder has the tensor.
bool HasStored(const std::filesystem::path& folder, const std::string& name);

/// The values of NAME_blocks and NAME_scales in MXFP4, row by row of all their dimensions but the last two.
std::vector<float> StoredMxfp4(const std::filesystem::path& folder, const std::string& name);

/// The embedding table, row by row.
std::vector<float> EmbeddingOf(const DenseWeights& weights);

/// All elements, row by row.
std::vector<float> Unpack(const PackedMatrix& matrix);

}  // namespace moe
