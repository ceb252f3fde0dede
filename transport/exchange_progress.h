// How far one exchange has come, by worker; the same for every transport that polls for its replies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/clock.h"

namespace moe {

/// Kept by the transport beside the exchange's buffers, so that they stay together where an exchange is given up.
struct ExchangeProgress {
  explicit ExchangeProgress(std::size_t num_workers) : pending(num_workers), completed_at(num_workers) {}

  /// A worker takes part that is sent any bytes.
  void Begin(std::uint64_t number, std::span<const std::size_t> request_bytes) {
    sequence = number;
    for (std::size_t w = 0; w < request_bytes.size(); ++w) {
      completed_at[w] = TimePoint();
      pending[w] = request_bytes[w] > 0 ? 1 : 0;
      num_pending += pending[w];
    }
  }
  void Replied(std::size_t worker) { completed_at[worker] = Clock::now(); }
  bool replied(std::size_t worker) const { return completed_at[worker] != TimePoint(); }
  void End(std::size_t worker) {
    pending[worker] = 0;
    --num_pending;
  }

  std::uint64_t sequence = 0;
  std::vector<std::uint8_t> pending;  // its part has not ended
  std::size_t num_pending = 0;
  std::vector<TimePoint> completed_at;  // as Exchange::completed_at
  bool used = false;                    // an exchange holds it
};

}  // namespace moe
