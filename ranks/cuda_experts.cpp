#include <algorithm>

#include "experts/cuda_expert_backend.h"
#include "ranks/device_experts.h"

namespace moe {

Result<std::unique_ptr<ExpertBackend>> MakeDeviceExperts(RankDevice& device, const RankSetup& setup,
                                                         const ExpertRoom& room) {
  return MakeCudaExpertBackend(*device.api, {.device = device.index,
                                             .rows = room.rows,
                                             .slots = std::max<std::size_t>(1, room.slots),
                                             .hidden = setup.exchange.hidden,
                                             .intermediate = room.intermediate,
                                             .type = setup.weight_types.mlps,
                                             .observer = device.on_upload});
}

}  // namespace moe
