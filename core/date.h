// The date, for people: what time is measured with is core/clock.h.
#pragma once

#include <string>

namespace moe {

/// Now, as 2026-01-31T12:00:00Z.
std::string NowUtc();

}  // namespace moe
