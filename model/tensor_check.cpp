#include "model/tensor_check.h"

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "model/json.h"
#include "model/parameter_count.h"
#include "model/stored_weight.h"
#include "model/tensor_specs.h"

namespace moe {
namespace {

/// The copy is not used, so it must be the same: its form here, its bytes when the embedding is loaded.
Status CheckCopyForm(const ModelConfig& config, const Checkpoint& checkpoint, const std::string& name) {
  MOE_ASSIGN_OR_RETURN(const TensorInfo* copy, checkpoint.Find(name));
  MOE_ASSIGN_OR_RETURN(const TensorInfo* embedding, checkpoint.Find(config.tensor_names.embedding + ".weight"));
  if (copy->shape == embedding->shape && copy->dtype == embedding->dtype) return Status::Ok();
  return InvalidArgument(checkpoint.file_name(*copy), ": tensor ", name, " has shape ", ShapeText(copy->shape),
                         " and dtype ", copy->dtype, ", unlike the embedding that it repeats, ",
                         ShapeText(embedding->shape), " and ", embedding->dtype,
                         config.tied_embeddings ? " (tie_word_embeddings is true)" : "");
}

/// The type that holds the values of both.
WeightType Wider(WeightType a, WeightType b) { return a == b ? a : WeightType::kF32; }

/// Goes through the weights of a model and remembers the tensors that hold them.
class TensorWalk {
 public:
  explicit TensorWalk(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  Status Check(const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs) {
      MOE_ASSIGN_OR_RETURN(const StoredForm form, CheckStored(checkpoint_, spec));
      if (HeldInWeightType(spec)) exact_type_ = exact_type_ ? Wider(*exact_type_, form.exact_type) : form.exact_type;
      if (!known_.insert(form.tensors.front()).second) continue;
      weights_ += form.weights;
      known_.insert(form.tensors.begin(), form.tensors.end());
    }
    return Status::Ok();
  }

  Status CheckLayer(const ModelConfig& config, int layer) {
    MOE_RETURN_IF_ERROR(Check(LayerTensors(config, layer)));
    const auto& moe = config.layers[static_cast<std::size_t>(layer)].moe;
    if (!moe) return Status::Ok();
    const bool fused = config.names_of(layer).expert_layout.fused;
    const int stored_apart = fused ? 1 : moe->gate.num_experts;
    for (int expert = 0; expert < stored_apart; ++expert) {
      MOE_RETURN_IF_ERROR(Check(ExpertTensors(config, layer, expert)));
    }
    return Status::Ok();
  }

  void Know(const std::string& name) { known_.insert(name); }
  bool knows(const std::string& name) const { return known_.contains(name); }
  /// Logical weights in the tensors seen.
  std::uint64_t weights() const { return weights_; }
  WeightType exact_type() const { return exact_type_.value_or(WeightType::kF32); }

 private:
  const Checkpoint& checkpoint_;
  std::set<std::string, std::less<>> known_;
  std::uint64_t weights_ = 0;
  std::optional<WeightType> exact_type_;
};

}  // namespace

std::vector<std::string> EmbeddingCopies(const ModelConfig& config, const Checkpoint& checkpoint) {
  std::vector<std::string> names = config.tensor_names.embedding_copies;
  if (config.tied_embeddings) names.push_back(config.tensor_names.head);
  for (std::string& name : names) name += ".weight";
  std::erase_if(names, [&](const std::string& name) { return !checkpoint.tensors().contains(name); });
  return names;
}

Result<CheckedTensors> CheckTensors(const ModelConfig& config, const Checkpoint& checkpoint) {
  if (checkpoint.made_up()) return CheckedTensors{.exact_type = config.stored_type};
  TensorWalk walk(checkpoint);
  MOE_RETURN_IF_ERROR(walk.Check(OuterTensors(config)));
  for (int layer = 0; layer < config.num_layers(); ++layer) MOE_RETURN_IF_ERROR(walk.CheckLayer(config, layer));
  for (const std::string& name : EmbeddingCopies(config, checkpoint)) {
    MOE_RETURN_IF_ERROR(CheckCopyForm(config, checkpoint, name));
    walk.Know(name);
  }
  for (const auto& [name, info] : checkpoint.tensors()) {
    if (walk.knows(name) || IsIgnorable(config, name)) continue;
    return InvalidArgument(checkpoint.file_name(info), ": tensor ", Printable(name), " is unknown to model_type ",
                           config.model_type, " with this config.json");
  }
  const std::uint64_t counted = CountParameters(config).total;
  if (walk.weights() != counted) {
    const bool more = walk.weights() > counted;
    return InvalidArgument("the checkpoint holds ", walk.weights(), " weights, config.json describes ", counted, ": ",
                           more ? walk.weights() - counted : counted - walk.weights(), more ? " too many" : " too few");
  }
  return CheckedTensors{.exact_type = walk.exact_type()};
}

}  // namespace moe
