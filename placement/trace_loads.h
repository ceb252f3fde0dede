// Whole trace files, and what they say about loads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "core/status.h"
#include "placement/trace_file.h"

namespace moe {

/// Tokens by (sparse layer, expert).
using LayerLoads = std::vector<std::vector<std::uint64_t>>;

/// What is known of a trace once it has been read.
struct TraceSummary {
  TraceHeader header;
  std::uint64_t steps = 0;
  std::uint64_t dropped = 0;
  std::optional<TraceEnd> end;  // nothing: the file breaks off after whole steps
};

/// Reads a file step by step. A failure of `each` ends it and is returned. NOT_FOUND or INVALID_ARGUMENT naming the
/// file.
Result<TraceSummary> ReadTraceFile(const std::filesystem::path& path,
                                   const std::function<Status(const TraceHeader&, const TraceStep&)>& each);

struct TraceLoads {
  TraceSummary trace;
  LayerLoads total;
  std::vector<LayerLoads> windows;  // of consecutive steps; the last may have fewer
};

/// `window_steps` 0: no windows. Counts what was sent: a pair of weight 0 (a token over an expert's capacity) was not.
/// RESOURCE_EXHAUSTED when the windows would have more than 2^28 counts.
Result<TraceLoads> ReadTraceLoads(const std::filesystem::path& path, std::size_t window_steps = 0);

}  // namespace moe
