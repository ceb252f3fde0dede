// The results of a load run for people and for programs; names as in `vllm bench serve` where the figure is the same.
#pragma once

#include <string>

#include "bench/load.h"

namespace moe {

/// The value of "results" in the envelope.
std::string LoadResultsJson(const LoadResult& result);

/// `request_rate`: as configured; not shown when infinite.
std::string LoadTable(const LoadResult& result, double request_rate);

/// One sentence for stderr: what did not complete, and why. Empty for a clean run.
std::string LoadComplaint(const LoadResult& result);

}  // namespace moe
