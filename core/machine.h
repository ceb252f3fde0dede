// What this process may use of the machine it runs on.
#pragma once

#include <cstdint>

namespace moe {

/// Bytes of memory: the machine's, or what a container (cgroup v2 or v1) is limited to when that is less.
std::uint64_t MachineMemoryBytes();

}  // namespace moe
