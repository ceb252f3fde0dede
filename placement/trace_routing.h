// Routing as a trace has it, for tokens that are not the trace's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "core/status.h"
#include "model/config.h"
#include "model/routing_override.h"

namespace moe {

/// A token takes the experts that a row of the trace took, the same row in every layer of a stack; which one follows
/// from (seed, its id, its position). INVALID_ARGUMENT when the trace is of another shape than `config` or has no row
/// for a stack; RESOURCE_EXHAUSTED when its rows take more than 1 GiB.
Result<std::shared_ptr<const RoutingOverride>> ReadTraceRouting(const std::filesystem::path& path, std::uint64_t seed,
                                                                const ModelConfig& config);

}  // namespace moe
