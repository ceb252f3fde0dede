// Whether a router's experts should move: what its balancer is to do, by the flags.
#pragma once

#include <cstdint>

#include "apps/serve_options.h"
#include "router/balancer.h"
#include "router/router_metrics.h"

namespace moe {

/// Of an expert in one layer, as workers hold it; the largest, should layers differ.
std::uint64_t BytesPerExpert(const ServeSetup& setup);

/// Logs verdicts and shows them in `metrics`; moves experts by `router`. All outlive the balancer.
Balancer::Options MakeBalancerOptions(const ServeSetup& setup, const RouterMetrics& metrics, Router& router);

}  // namespace moe
