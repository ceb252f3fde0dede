// Loads of experts from a file: what placements are weighed with.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "placement/placement_problem.h"

namespace moe {

/// The JSON form that docs/placement-format.md describes. Layers without indices are numbered from 0. INVALID_ARGUMENT
/// or NOT_FOUND naming the file and what is wrong.
Result<std::vector<LayerLoad>> ReadLoadsFile(const std::filesystem::path& path);

/// The same of a text in that form, without the file's name.
Result<std::vector<LayerLoad>> ParseLoads(std::string_view json);

/// The same of a model with these sparse layers: as many in the file, and of the same indices where it has any, each of
/// `num_experts` experts.
Result<std::vector<LayerLoad>> ReadLoadsFile(const std::filesystem::path& path, const std::vector<int>& layers,
                                             int num_experts);

}  // namespace moe
