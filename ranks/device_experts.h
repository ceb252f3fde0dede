// A rank's experts on its device.
#pragma once

#include <memory>

#include "core/status.h"
#include "experts/expert_backend.h"
#include "experts/expert_shard.h"
#include "ranks/rank_device.h"
#include "ranks/rank_setup.h"

namespace moe {

/// What a backend must have room for.
struct ExpertRoom {
  std::size_t rows = 0;          // of one dispatch
  std::size_t slots = 0;         // of a layer
  std::size_t intermediate = 0;  // of the widest expert
};

/// `device` outlives the backend. INVALID_ARGUMENT when devices do not compute with such weights.
Result<std::unique_ptr<ExpertBackend>> MakeDeviceExperts(RankDevice& device, const RankSetup& setup,
                                                         const ExpertRoom& room);

}  // namespace moe
