// The kernels of a router on a device: from a gate's logits to experts and weights, from tokens to rows sorted by slot,
// and back. Pointers are device addresses; every function enqueues on `stream` and returns. All results have the bits
// that the CPU's have (model/gate.h, router/): sums are taken in the same order, and integers do not care.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device_api.h"

namespace moe::cuda {

/// model/config.h's GateSpec, the part of it that a device computes. A capacity (Switch) makes tokens of a sequence
/// wait for one another and is applied on the host.
struct GateRules {
  enum class Scoring : std::uint8_t { kSoftmax, kSigmoid, kLogits };
  enum class GroupScore : std::uint8_t { kMax, kSumOfTwo };
  enum class Normalization : std::uint8_t { kNone, kSum, kSoftmax };

  std::uint32_t num_experts = 0;
  std::uint32_t experts_per_token = 0;
  Scoring scoring = Scoring::kSoftmax;
  bool select_by_logits = false;
  std::uint32_t groups = 1;
  std::uint32_t top_groups = 1;
  GroupScore group_score = GroupScore::kMax;
  Normalization normalization = Normalization::kSum;
  float normalization_eps = 0;
  float scale = 1;

  /// Both arrays of scores lie in the 48 KiB of shared memory that every device gives; a lane holds one chosen expert
  /// and one group.
  static constexpr std::uint32_t kMaxExperts = 6144;
  static constexpr std::uint32_t kMaxPerToken = 32;
  static constexpr std::uint32_t kMaxGroups = 32;
};

struct GateTask {
  GateRules rules;
  std::uint32_t tokens = 0;
  const float* logits = nullptr;      // (tokens, num_experts), with the gate's bias
  const float* correction = nullptr;  // (num_experts) joins the selection scores; null: none
  std::int32_t* ids = nullptr;        // (tokens, experts_per_token), descending, ties to the lower id
  float* weights = nullptr;           // (tokens, experts_per_token)
};
void SelectExperts(const GateTask& task, DeviceStream stream);

inline constexpr std::uint32_t kNoRow = 0xffffffffu;

/// Pairs of a token and one of its slots to rows grouped by slot, in the order of the pairs inside of a slot.
struct SortTask {
  std::uint32_t pairs = 0;
  std::uint32_t slots = 0;               // at most kMaxSlots
  const std::int32_t* slot = nullptr;    // (pairs), negative: not wanted
  std::uint32_t* offsets = nullptr;      // (slots + 1), exclusive
  std::uint32_t* row_of_pair = nullptr;  // (pairs); kNoRow for one that is not wanted
  static constexpr std::uint32_t kMaxSlots = 8192;
};
void SortBySlot(const SortTask& task, DeviceStream stream);

struct PermuteTask {
  std::uint32_t pairs = 0;
  std::uint32_t pairs_per_token = 1;
  std::size_t hidden = 0;
  const float* tokens = nullptr;               // (pairs / pairs_per_token, hidden)
  const std::uint32_t* row_of_pair = nullptr;  // (pairs)
  float* rows = nullptr;                       // (wanted pairs, hidden)
};
/// rows[row_of_pair[p]] = tokens[p / pairs_per_token]
void PermuteRows(const PermuteTask& task, DeviceStream stream);

struct CombineTask {
  std::uint32_t tokens = 0;
  std::uint32_t pairs_per_token = 1;
  std::size_t hidden = 0;
  const float* rows = nullptr;                 // (wanted pairs, hidden)
  const std::uint32_t* row_of_pair = nullptr;  // (tokens, pairs_per_token)
  const float* weights = nullptr;              // (tokens, pairs_per_token); null: all are 1 (Llama 4)
  float* out = nullptr;                        // (tokens, hidden)
};
/// out = Σ weight * row in the order of the list, each addition fused; pairs without a row or of weight 0 add nothing.
void CombineRows(const CombineTask& task, DeviceStream stream);

}  // namespace moe::cuda
