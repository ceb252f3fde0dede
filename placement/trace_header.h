// The JSON inside a trace's header.
#pragma once

#include <string>
#include <string_view>

#include "core/status.h"
#include "placement/trace_file.h"

namespace moe {

std::string TraceHeaderJson(const TraceHeader& header);
/// INVALID_ARGUMENT naming the key that is missing, unknown or out of range.
Result<TraceHeader> ParseTraceHeader(std::string_view text);

}  // namespace moe
