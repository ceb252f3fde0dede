// A model as its family publishes it: every tensor with its name, shape and values, listed from config.json alone (not
// with model/tensor_specs.h, which is what this is compared with).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/tensor_specs.h"
#include "model/weights.h"

namespace moe {

/// All weights of a model in memory.
struct WholeModel {
  DenseWeights dense;
  std::vector<std::vector<MlpWeights>> experts;  // by layer, then expert; none for dense layers
};

/// All of it, the experts in this order of one (0) or the other (1) direction.
Result<WholeModel> LoadWhole(const ModelConfig& config, const Checkpoint& checkpoint, WeightType type, ThreadPool& pool,
                             bool backwards = false);

/// How a checkpoint may keep a tensor instead of plain.
enum class Quantised { kNever, kFp8, kMxfp4 };

struct PublishedTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  ModelPart part = ModelPart::kEmbedding;
  Quantised quantised = Quantised::kNever;  // kMxfp4: of (experts, inputs, outputs)
  std::vector<float> values;                // in the order of `shape`, as the model holds them

  std::int64_t elements() const { return static_cast<std::int64_t>(values.size()); }
};

/// The tensors of a model with this configuration that holds `weights` in f32.
std::vector<PublishedTensor> PublishedTensors(const nlohmann::json& config, const WholeModel& weights);

}  // namespace moe
