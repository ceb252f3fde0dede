// An independent reading of checkpoints and packed matrices, to compare the model library with.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/packed_matrix.h"

namespace moe {

/// The values of a tensor in whichever file of the folder has it. The latest folder stays in memory: files of a folder
/// must not change between calls.
std::vector<float> StoredValues(const std::filesystem::path& folder, const std::string& name);

/// Those of several tensors, one after the other.
std::vector<float> StoredValues(const std::filesystem::path& folder, const std::vector<std::string>& names);

float ReadElement(const std::byte* at, WeightType type);

/// All elements, row by row.
std::vector<float> Unpack(const PackedMatrix& matrix);

}  // namespace moe
