// Numbers that must not be mixed up: a rank is a process, a worker a host of experts.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <ostream>

namespace moe {

template <typename Tag, typename T = std::int32_t>
class StrongId {
 public:
  constexpr StrongId() = default;
  constexpr explicit StrongId(T value) : value_(value) {}
  constexpr T value() const { return value_; }
  /// As an index of an array that has one entry per id.
  constexpr std::size_t index() const { return static_cast<std::size_t>(value_); }
  friend constexpr auto operator<=>(StrongId, StrongId) = default;
  friend std::ostream& operator<<(std::ostream& out, StrongId id) { return out << id.value_; }

 private:
  T value_ = 0;
};

/// A process: the router is 0, workers are 1…W in MPI order or `--workers` order.
using Rank = StrongId<struct RankTag>;
/// A host of experts: rank − 1; embedded, the one process is rank 0 and worker 0 (core/topology.h).
using WorkerId = StrongId<struct WorkerTag>;

}  // namespace moe

template <typename Tag, typename T>
struct std::hash<moe::StrongId<Tag, T>> {
  std::size_t operator()(moe::StrongId<Tag, T> id) const { return std::hash<T>{}(id.value()); }
};
