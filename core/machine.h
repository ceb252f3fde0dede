// What this process may use of the machine it runs on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moe {

/// Bytes of memory: the machine's, or what a container (cgroup v2 or v1) is limited to when that is less.
std::uint64_t MachineMemoryBytes();

/// Bytes that can be had without pushing out what is in use; 0 where the system does not say.
std::uint64_t FreeMemoryBytes();

/// The processors that the calling thread may run on, ascending; at least one.
std::vector<int> AllowedProcessors();

/// What the machine, or the container, is called, at most 255 bytes; empty where the system does not say.
std::string HostName();

}  // namespace moe
