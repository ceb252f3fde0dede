// Which replicas compute how many of an expert's rows: dealt from the counts of a part, so that the fullest worker has
// as few rows as can be, and the workers of the router's machine as many as that allows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/worker_mask.h"
#include "placement/placement.h"

namespace moe {

/// For one layer at a time, whose tokens come in parts, without allocating. Deal looks at a part's counts; then every
/// row takes its replica. The same counts and the same rows are always dealt alike.
class ReplicaChoice {
 public:
  ReplicaChoice(std::size_t num_experts, int workers);

  /// Between two steps: the workers on the router's machine, to which rows cross no network. None until this is called.
  void SetLocal(WorkerMask local);

  /// Forgets what the workers have got.
  void BeginLayer();

  /// Deals `expert_rows`, (num_experts), each expert's to its replicas; an expert with rows has one. Beside what the
  /// parts before have brought, the fullest worker gets as few rows as any dealing of this part could give it. As many
  /// experts as possible without looking further stay whole, because each worker that computes an expert reads all of
  /// its weights. Beside all that, local workers are preferred: what a worker elsewhere was dealt of an expert goes to
  /// a local one that has room under the fullest, whole, or as far as there is room if that one computes the expert
  /// anyway.
  void Deal(const ReplicaTable& replicas, std::size_t sparse_index, std::span<const std::uint32_t> expert_rows);

  /// The next token. Workers that it is said to go to are preferred by its other rows.
  void BeginToken() { ++token_; }
  void GoesTo(WorkerId worker) { goes_[worker.index()] = token_; }
  /// Takes one of the rows that were dealt to `expert`, which has several replicas. Of them: one that the token
  /// goes to anyway, if that one computes this expert anyway, does not become fuller than the fullest, and takes no row
  /// of a local worker to another machine; else the one with the most rows left.
  const ReplicaSlot& Take(std::size_t expert, std::span<const ReplicaSlot> replicas);

  /// Rows of each worker in this layer so far, (workers), as dealt.
  std::span<const std::uint32_t> worker_rows() const { return worker_rows_; }

 private:
  /// What a replica gets of its expert's rows.
  struct Share {
    std::uint32_t worker = 0;
    std::uint32_t rows = 0;  // still to be taken
    bool computes = false;   // it was dealt any
  };
  /// An expert with several replicas and with rows.
  struct Choice {
    std::uint32_t expert = 0;
    std::uint32_t rows = 0;
    std::uint32_t first = 0;  // of its shares
    std::uint32_t replicas = 0;
  };
  /// How a row could get to a worker that the search has reached: from one share to another of the same expert.
  struct Hop {
    std::uint32_t from = 0;
    std::uint32_t to = 0;
  };

  std::span<Share> shares(const Choice& choice) { return std::span(shares_).subspan(choice.first, choice.replicas); }
  std::uint32_t LeastLevel();
  Share& Emptiest(std::span<Share> shares);
  void Give(Share& share, std::uint32_t rows);
  void Pour(const Choice& choice);
  bool Relieve();
  void Reach(std::uint32_t worker);
  void BringHome(const Choice& choice);

  WorkerMask local_;
  bool some_local_ = false;                 // and others not
  std::vector<std::uint32_t> worker_rows_;  // (workers)
  std::uint32_t level_ = 0;                 // the fullest worker's rows; before that is known, no more than it
  std::vector<Choice> choices_;             // at most (num_experts)
  std::vector<Share> shares_;               // at most (num_experts, workers), by choice
  std::vector<std::uint32_t> first_share_;  // (num_experts)

  // Of the search; (workers) each.
  std::vector<std::uint32_t> reached_;  // in the order of the search
  std::vector<std::uint8_t> seen_;
  std::vector<Hop> hops_;  // by worker

  std::uint64_t token_ = 0;
  std::vector<std::uint64_t> goes_;  // (workers): the last token that goes there
};

}  // namespace moe
