// What a worker hosts: for each of its routers, the slots of every generation of that router's placement that it holds.
// Experts that several of them have are in memory once, and are freed with the last that has them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/clock.h"
#include "core/status.h"
#include "experts/expert_shard.h"
#include "experts/shard_loading.h"
#include "model/config.h"
#include "model/dispatch_format.h"
#include "model/migration_format.h"
#include "model/weight_types.h"

namespace moe {

/// INVALID_ARGUMENT naming what `slots`, of a layer of a worker, have that they must not: an expert that is none of the
/// model, or twice.
Status CheckSlots(const WorkerAssignment::Layer& slots, int num_experts);

/// What is in memory just now.
struct HostedExperts {
  struct Layer {
    int layer = 0;             // absolute index
    std::vector<int> experts;  // by slot
  };
  std::uint64_t generation = 0;  // that came last; 0: there is none
  std::vector<Layer> layers;     // of that generation
  std::uint64_t slots = 0;       // of that generation
  std::uint64_t parameters = 0;  // of all generations, each expert once
  std::uint64_t bytes = 0;       // the same
};

/// Used by the worker's loop, but for hosted().
class ExpertViews {
 public:
  struct Options {
    const ModelConfig& config;
    WeightTypes types;
    ExpertLoader load;
    std::function<std::uint64_t()> free_memory;                // bytes; 0: unknown
    std::function<void(const HostedExperts&)> on_hosted = {};  // after each change, by the loop; may be empty
  };
  /// `options.config` outlives this.
  explicit ExpertViews(Options options);

  using Shard = std::shared_ptr<const ExpertShard>;

  /// What the router's dispatches of this generation mean; null when there is no such generation.
  const ExpertShard* Find(int router, std::uint64_t generation) const;
  /// The same, for a dispatch.
  const ExpertShard* Use(int router, std::uint64_t generation);
  void Hold(int router, std::uint64_t generation, Shard shard);
  /// Every router that this worker meets from here on has `shard` as that generation, until one has dropped it.
  void HoldForAll(std::uint64_t generation, Shard shard);
  /// Before anything else of a request of the router's.
  void Meet(int router);
  /// One with just these slots, whoever's it is; null when there is none.
  Shard FindSame(const std::vector<WorkerAssignment::Layer>& layers) const;
  /// Has of what is missing in `shard` what is in memory here.
  void Share(ExpertShard& shard) const;

  struct Holding {
    int router = 0;
    std::uint64_t generation = 0;
    Shard shard;
    bool prepared = false;             // and not dispatched to, or assigned, since
    std::optional<TimePoint> left_at;  // when it was noticed that the router is gone
  };
  static constexpr int kNobody = -1;  // as a router
  const std::vector<Holding>& holdings() const { return holdings_; }
  /// The number stands for another router from here on. What the one before held stays, for nobody, in case that it
  /// comes back under another number; what it had only prepared goes.
  void Leave(int router);
  /// Drops what routers have only prepared that are gone, and, if others hold anything, what they have held for longer
  /// than `keep` since.
  void DropDetached(const std::function<bool(int router)>& attached, TimePoint now, Clock::duration keep);

  /// Begins to load what the preparation lacks. Refuses by name: FAILED_PRECONDITION when another migration is under
  /// way here, RESOURCE_EXHAUSTED when memory is short, INVALID_ARGUMENT for a generation, a layer or an expert that
  /// cannot be.
  Status Prepare(int router, const WorkerPreparation& wanted);
  /// INVALID_ARGUMENT for what has not been prepared.
  Result<PreparationStatus> StatusOf(int router, const PreparationQuery& query);
  /// Forgets a generation of the router, ready or not. Nothing when there is none.
  void Drop(int router, std::uint64_t generation);

  /// RESOURCE_EXHAUSTED when there is no room for what is missing in `shard`.
  Status CheckMemory(const ExpertShard& shard) const;
  const ExpertLoader& loader() const { return options_.load; }

  /// By any thread.
  HostedExperts hosted() const;

 private:
  /// Of a router, from Prepare until it drops either generation.
  struct Preparation {
    int router = 0;
    std::uint64_t generation = 0;
    std::uint64_t from = 0;
    std::unique_ptr<ShardLoading> loading;  // null once it is done
    PreparationStatus status;
    std::vector<std::uint64_t> checksums;
  };

  Result<ExpertShard> Arrange(int router, const WorkerPreparation& wanted) const;
  Result<std::vector<ShardLoading::Options::Check>> FindChecks(const ExpertShard& from, const ExpertShard& shard,
                                                               const WorkerPreparation& wanted) const;
  void Settle(Preparation& preparation);
  void GiveUp(Preparation& preparation);
  void EndLoads();
  /// Brings hosted() up to date.
  void Show();

  const Options options_;
  std::vector<Holding> holdings_;
  std::optional<Holding> for_all_;
  std::vector<int> met_;
  std::vector<Preparation> preparations_;                // one a router
  std::vector<std::unique_ptr<ShardLoading>> given_up_;  // that have not ended yet

  mutable std::mutex mutex_;
  HostedExperts hosted_;  // under mutex_
};

}  // namespace moe
