// What a build without CUDA says of experts on a device.
#include "ranks/device_experts.h"

namespace moe {

Result<std::unique_ptr<ExpertBackend>> MakeDeviceExperts(RankDevice& /*device*/, const RankSetup& /*setup*/,
                                                         const ExpertRoom& /*room*/) {
  return InvalidArgument("this build has no CUDA");
}

}  // namespace moe
