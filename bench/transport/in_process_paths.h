// `moe_bench transport` in one process: workers that are threads, joined by the in-process transport, and its baseline,
// a plain copy of the bytes by one thread.
#pragma once

#include <functional>
#include <vector>

#include "bench/transport/exchange_bench.h"

namespace moe {

Result<std::vector<ExchangeResult>> RunExchangeBenchInProcess(const ExchangeBenchOptions& options, int workers,
                                                              const std::function<void(std::size_t rows)>& starting);

}  // namespace moe
