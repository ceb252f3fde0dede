// The experts that one worker hosts.
#pragma once

#include <cstdint>
#include <vector>

#include "core/ids.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/weights.h"
#include "placement/placement.h"

namespace moe {

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
    std::vector<MlpWeights> weights;
  };

  /// Of the layer that has the most.
  std::size_t most_slots() const;
  std::uint64_t generation() const { return generation_; }
  const std::vector<Layer>& layers() const { return layers_; }
  /// The shard's part of an absolute layer; null when that layer is not sparse.
  const Layer* Find(std::uint32_t layer) const;
  std::uint64_t parameters() const { return parameters_; }
  std::uint64_t bytes() const { return bytes_; }

 private:
  std::uint64_t generation_ = 0;
  std::vector<Layer> layers_;  // every sparse layer, ascending, also those without a slot here
  std::uint64_t parameters_ = 0;
  std::uint64_t bytes_ = 0;
};

}  // namespace moe
