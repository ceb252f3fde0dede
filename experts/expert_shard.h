// The experts that one worker hosts.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/ids.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/dispatch_format.h"
#include "model/weights.h"
#include "placement/placement.h"

namespace moe {

/// Reads one expert of a sparse layer; by any thread, several at a time.
using ExpertLoader = std::function<Result<MlpWeights>(int layer, int expert)>;

class ExpertShard {
 public:
  /// Reads and packs the weights of `worker`'s slots in `placement`, and maps nothing else. Slots are loaded in
  /// parallel on `pool`; the error is that of the first slot that failed.
  static Result<ExpertShard> Load(const ModelConfig& config, const Checkpoint& checkpoint, const Placement& placement,
                                  WorkerId worker, const WeightForm& form, ThreadPool& pool);

  struct Layer {
    int layer = 0;              // absolute index
    MlpSpec mlp;                // of every expert
    bool scales_input = false;  // rows are multiplied by the gate's weight before they reach an expert
    std::vector<int> experts;   // logical expert of each slot
    /// By slot; other shards may have the same. Null while they are not loaded.
    std::vector<std::shared_ptr<const MlpWeights>> weights;
  };

  /// Of the layer that has the most.
  std::size_t most_slots() const;
  std::uint64_t generation() const { return generation_; }
  const std::vector<Layer>& layers() const { return layers_; }
  /// The shard's part of an absolute layer; null when that layer is not sparse.
  const Layer* Find(std::uint32_t layer) const;
  /// The weights of a layer's expert; null when it has no slot here or is not loaded.
  std::shared_ptr<const MlpWeights> Expert(int layer, int expert) const;
  std::uint64_t slots() const;  // of all layers
  /// Of what is loaded; bytes as held in memory.
  std::uint64_t parameters() const;
  std::uint64_t bytes() const;

  // A shard that gets its weights one after the other.

  /// The slots of `worker` in `placement`, none of them loaded.
  static ExpertShard Unloaded(const ModelConfig& config, const Placement& placement, WorkerId worker);
  /// The same with other experts in some layers. What is loaded here is loaded there. INVALID_ARGUMENT for a layer that
  /// is not here.
  Result<ExpertShard> Rearranged(std::uint64_t generation, std::span<const WorkerAssignment::Layer> layers) const;
  /// Has what `other` has loaded of what is missing here.
  void TakeFrom(const ExpertShard& other);
  /// Slots that are not loaded.
  struct Missing {
    std::size_t index = 0;  // of the layer in layers()
    std::size_t slot = 0;
  };
  std::vector<Missing> missing() const;
  void Put(const Missing& where, std::shared_ptr<const MlpWeights> weights);
  /// In parallel on `pool`; the error is that of the first slot that failed.
  Status LoadMissing(const ExpertLoader& load, ThreadPool& pool);

 private:
  std::uint64_t generation_ = 0;
  std::vector<Layer> layers_;  // every sparse layer, ascending, also those without a slot here
};

}  // namespace moe
