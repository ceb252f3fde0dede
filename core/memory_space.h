// Where bytes live.
#pragma once

#include <cstdint>

namespace moe {

enum class MemorySpace : std::uint8_t { kHost, kDevice };

}  // namespace moe
