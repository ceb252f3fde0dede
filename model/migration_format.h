// What a router and a worker say to each other while experts move: the worker is to have another generation of the
// placement beside the one in force. Travels as JSON, seldom and outside steps. docs/wire-format.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/status.h"
#include "model/dispatch_format.h"

namespace moe {

/// What a worker is to have in another generation.
struct WorkerPreparation {
  struct Checks {
    int layer = 0;  // absolute index
    std::vector<int> experts;

    bool operator==(const Checks&) const = default;
  };

  std::uint64_t generation = 0;
  std::uint64_t from = 0;                       // of the same router: its slots hold for the layers not listed
  std::uint64_t bytes_per_s = 0;                // the most that is loaded; 0: no limit
  std::vector<WorkerAssignment::Layer> layers;  // that differ, ascending
  std::vector<Checks> checks;                   // experts of either generation whose checksums are wanted

  bool operator==(const WorkerPreparation&) const = default;
};

/// The most that one of so many sparse layers and slots in all takes.
std::size_t MaxPreparationBytes(std::size_t layers, std::size_t slots);
/// RESOURCE_EXHAUSTED when the buffer is too small.
Result<std::size_t> WritePreparation(std::span<std::byte> buffer, const WorkerPreparation& preparation);
Result<WorkerPreparation> ParsePreparation(std::span<const std::byte> payload);

enum class PreparationState : std::uint8_t { kLoading, kReady, kFailed };

/// How far a worker is.
struct PreparationStatus {
  PreparationState state = PreparationState::kLoading;
  Status failure;  // of kFailed
  std::uint64_t loaded_experts = 0;
  std::uint64_t loaded_bytes = 0;  // as held in memory
  /// When ready, of the experts in `checks`, in their order, from the one that was asked for on; as many as fit.
  std::vector<std::uint64_t> checksums;
};

/// A reply has at most so many checksums: 20 digits and a comma each within kMaxControlBytes.
inline constexpr std::size_t kMostChecksums = 2048;

/// Asks how far `generation` is, and for the checksums from `first_checksum` on.
struct PreparationQuery {
  std::uint64_t generation = 0;
  std::uint64_t first_checksum = 0;
};
std::size_t WritePreparationQuery(std::span<std::byte> buffer, const PreparationQuery& query);
Result<PreparationQuery> ParsePreparationQuery(std::span<const std::byte> payload);

std::size_t WritePreparationStatus(std::span<std::byte> buffer, const PreparationStatus& status);
Result<PreparationStatus> ParsePreparationStatus(std::span<const std::byte> payload);

}  // namespace moe
