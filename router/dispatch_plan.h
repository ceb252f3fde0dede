// Which row goes to which worker, for one layer of one step: top-k × placement. A step's tokens may come in parts
// (micro-batches), one after the other.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "core/matrix.h"
#include "core/worker_mask.h"
#include "model/dispatch_format.h"
#include "placement/placement.h"
#include "router/replica_choice.h"

namespace moe {

/// Built anew for every part of a layer's tokens, without allocating. A token's row goes once to each worker that hosts
/// one of its experts; what comes back is one row per (token, expert).
class DispatchPlan {
 public:
  struct Shape {
    std::size_t max_tokens = 0;  // of a step
    std::size_t experts_per_token = 0;
    std::size_t num_experts = 0;
    int workers = 0;
  };
  explicit DispatchPlan(Shape shape);

  /// As ReplicaChoice::SetLocal.
  void SetLocal(WorkerMask local) { choice_.SetLocal(std::move(local)); }

  /// The part of one worker.
  struct Part {
    std::vector<std::uint32_t> tokens;  // of those given, ascending: the rows of the message
    std::vector<DispatchPair> pairs;    // by token, then in the order of its top-k list
  };

  /// Where the row of (token, j-th expert) comes back. No token that is left out has any.
  struct Source {
    std::uint32_t worker = 0;
    std::uint32_t pair = 0;
  };
  static constexpr std::uint32_t kNowhere = ~std::uint32_t{0};  // as a source's worker

  /// A token that wants an expert of which no worker has a copy.
  struct Unserved {
    std::size_t token = 0;  // of the step
    std::size_t expert = 0;
  };

  /// Some tokens of a layer, which come after `first_token` others of it. Those with none before them begin the layer.
  struct Tokens {
    std::size_t sparse_index = 0;
    std::size_t first_token = 0;
    MatrixView<const std::int32_t> ids;           // (tokens, k)
    MatrixView<const float> weights;              // (tokens, k)
    std::span<const std::uint8_t> left_out = {};  // (tokens): 1 for those that nobody waits for; empty: none
  };
  /// A pair of weight 0 adds nothing and is not sent. Of an expert with several replicas the rows are dealt to them by
  /// the counts of this part, so that the fullest worker has as few rows of the layer as can be (ReplicaChoice); beside
  /// that, local workers are preferred and a token's rows share workers. The choice depends on this step alone. A token
  /// with an expert without replica is left out whole.
  void Build(const ReplicaTable& replicas, const Tokens& tokens);

  /// Of the tokens given last.
  const Part& part(WorkerId worker) const { return parts_[worker.index()]; }
  /// Of the tokens given last, ascending; with the first such expert of each.
  std::span<const Unserved> unserved() const { return unserved_; }
  /// Of a pair that is sent; `token` counts from the first token of the step, and its pairs stay until it is given
  /// again.
  Source source(std::size_t token, std::size_t j) const { return sources_[token * shape_.experts_per_token + j]; }
  /// Tokens of each expert in this layer so far, (num_experts).
  std::span<const std::uint32_t> expert_tokens() const { return expert_tokens_; }
  /// Pairs of each worker in this layer so far, (workers).
  std::span<const std::uint32_t> worker_rows() const { return choice_.worker_rows(); }

 private:
  /// Whether the token is to be sent.
  bool Serves(const ReplicaTable& replicas, const Tokens& tokens, std::size_t token);
  /// Which tokens are sent, and how many each expert gets of them.
  void Count(const ReplicaTable& replicas, const Tokens& tokens);
  /// Where each pair of the token goes.
  void Choose(const ReplicaTable& replicas, const Tokens& tokens, std::size_t token);

  /// A pair whose expert has several replicas.
  struct Several {
    std::size_t j = 0;
    std::size_t expert = 0;
    std::span<const ReplicaSlot> slots;
  };

  const Shape shape_;
  std::vector<Part> parts_;
  std::vector<Source> sources_;  // (max_tokens, k)
  std::vector<Unserved> unserved_;
  std::vector<std::uint32_t> expert_tokens_;  // (num_experts)
  std::vector<std::uint32_t> part_tokens_;    // (num_experts): of the tokens given last
  std::vector<std::uint8_t> served_;          // (max_tokens): of those, 1 for the ones that are sent
  std::vector<ReplicaSlot> chosen_;           // (k): of one token
  std::vector<Several> several_;              // at most (k): of one token
  ReplicaChoice choice_;
};

}  // namespace moe
