// The one clock of this project, and deadlines on it.
#pragma once

#include <chrono>

namespace moe {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;

/// A point in time after which waiting ends with DEADLINE_EXCEEDED.
using Deadline = TimePoint;

inline constexpr Deadline kNoDeadline = TimePoint::max();

inline Deadline After(std::chrono::nanoseconds duration) { return Clock::now() + duration; }

inline double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace moe
