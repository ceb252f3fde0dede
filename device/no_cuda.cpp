// What a build without CUDA says of it.
#include "device/device_api.h"

namespace moe {

Result<std::unique_ptr<DeviceApi>> OpenCudaDevice() { return Unavailable("this build has no CUDA"); }

bool BuiltWithCuda() { return false; }

}  // namespace moe
