// The balancing rule of the EPLB project (github.com/deepseek-ai/EPLB), restated: replicate what is hot, then pack,
// from scratch each time. Here so that others' placements can be reproduced and ours compared with them.
#pragma once

#include <span>
#include <vector>

#include "core/status.h"

namespace moe {

struct EplbShape {
  int slots = 0;    // of a layer, over all devices
  int devices = 0;  // workers
  int nodes = 1;
  int groups = 1;  // consecutive experts that belong together
};

/// INVALID_ARGUMENT naming both numbers where the rule cannot divide one by the other: slots by devices, devices by
/// nodes, experts by groups; or where there are fewer slots than experts.
Status CheckEplb(const EplbShape& shape, int num_experts);

/// The experts of one layer's slots, (slots), device by device; `load` is (experts). Where nodes divide groups, each
/// group stays on one node (hierarchical); else groups and nodes are ignored (global). An expert may be on a device
/// twice. The shape has been checked.
std::vector<int> EplbSlots(std::span<const double> load, const EplbShape& shape);

/// What each device hosts, (devices), in the order of its slots: two of them with one expert host it once.
std::vector<std::vector<int>> EplbHosted(std::span<const int> slots, int devices);

/// The load of each device, (devices), when every one of an expert's slots takes an equal share, also where two of them
/// are on one device: what the rule itself reckons with.
std::vector<double> EplbDeviceLoads(std::span<const double> load, std::span<const int> slots, int devices);

}  // namespace moe
