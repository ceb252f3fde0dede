// What a build without NCCL says of it.
#include "transport/nccl/nccl_api.h"

namespace moe {

Result<std::unique_ptr<NcclApi>> OpenNccl() { return Unavailable("this build has no NCCL"); }

bool BuiltWithNccl() { return false; }

}  // namespace moe
