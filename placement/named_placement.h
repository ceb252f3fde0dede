// The placement that a deployment starts with, as --placement and the flags beside it name it.
#pragma once

#include <filesystem>
#include <string>

#include "core/status.h"
#include "placement/placement.h"

namespace moe {

/// Whether `placement` is none of the algorithms' names, and so a placement file's path.
bool NamesPlacementFile(const std::string& placement);

/// `placement` is linear, round_robin, eplb, auto or a placement file; `loads` a file for eplb and auto, empty: every
/// load uniform. INVALID_ARGUMENT and NOT_FOUND name the flag or the file: loads for an algorithm that does not weigh
/// them, replicas beside a file, which says itself who is replicated, and what the algorithm or the file is refused
/// for.
Result<Placement> MakeNamedPlacement(const PlacementShape& shape, const std::string& placement,
                                     const std::filesystem::path& loads);

}  // namespace moe
