// Which row goes to which worker, for one layer of one step: top-k × placement.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/matrix.h"
#include "model/dispatch_format.h"
#include "placement/placement.h"

namespace moe {

/// Built anew for every layer, without allocating. A token's row goes once to each worker that hosts one of its
/// experts; what comes back is one row per (token, expert).
class DispatchPlan {
 public:
  struct Shape {
    std::size_t max_tokens = 0;
    std::size_t experts_per_token = 0;
    std::size_t num_experts = 0;
    int workers = 0;
  };
  explicit DispatchPlan(Shape shape);

  /// The part of one worker.
  struct Part {
    std::vector<std::uint32_t> tokens;  // of the step, ascending: the rows of the message
    std::vector<DispatchPair> pairs;    // by token, then in the order of its top-k list
  };

  /// Where the row of (token, j-th expert) comes back.
  struct Source {
    std::uint32_t worker = 0;
    std::uint32_t pair = 0;
  };

  /// ids and weights: (tokens, k). A pair of weight 0 adds nothing and is not sent. An expert's rows go to its replicas
  /// in turn, so every replica gets as many as any other, give or take one, and the choice depends on this step alone.
  void Build(const ReplicaTable& replicas, std::size_t sparse_index, MatrixView<const std::int32_t> ids,
             MatrixView<const float> weights);

  const Part& part(WorkerId worker) const { return parts_[worker.index()]; }
  /// Of a pair that is sent.
  Source source(std::size_t token, std::size_t j) const { return sources_[token * shape_.experts_per_token + j]; }
  /// Tokens of each expert in this layer, (num_experts).
  std::span<const std::uint32_t> expert_tokens() const { return expert_tokens_; }

 private:
  const Shape shape_;
  std::vector<Part> parts_;
  std::vector<Source> sources_;               // (max_tokens, k)
  std::vector<std::uint32_t> expert_tokens_;  // (num_experts); also whose replica's turn it is
};

}  // namespace moe
