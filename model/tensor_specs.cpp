#include "model/tensor_specs.h"

#include "core/check.h"
#include "core/text.h"

namespace moe {
namespace {

void ReplaceAll(std::string& text, std::string_view what, int with) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what)) {
    text.replace(at, what.size(), Cat(with));
  }
}

/// Collects the specs of one layer or expert.
class SpecList {
 public:
  SpecList(int layer, int expert) : layer_(layer), expert_(expert) {}

  void Vector(TensorRole role, ModelPart part, const std::string& name, std::int64_t size) {
    Add(role, part, name, ".weight", {size}, false);
  }
  void Matrix(TensorRole role, ModelPart part, const std::string& name, std::int64_t outputs, std::int64_t inputs,
              bool bias = false) {
    Add(role, part, name, ".weight", {outputs, inputs}, false);
    if (bias) Add(role, part, name, ".bias", {outputs}, true);
  }
  std::vector<TensorSpec> Take() { return std::move(specs_); }

 private:
  void Add(TensorRole role, ModelPart part, std::string name, std::string_view suffix, std::vector<std::int64_t> shape,
           bool bias) {
    ReplaceAll(name, "{layer}", layer_);
    ReplaceAll(name, "{expert}", expert_);
    name += suffix;
    specs_.push_back({.role = role, .part = part, .name = std::move(name), .shape = std::move(shape), .bias = bias});
  }

  int layer_;
  int expert_;
  std::vector<TensorSpec> specs_;
};

const LayerSpec& LayerAt(const ModelConfig& config, int layer) {
  MOE_CHECK(layer >= 0 && layer < config.num_layers());
  return config.layers[static_cast<std::size_t>(layer)];
}

}  // namespace

std::uint64_t TensorSpec::elements() const {
  std::uint64_t count = 1;
  for (const std::int64_t dim : shape) count *= static_cast<std::uint64_t>(dim);
  return count;
}

std::vector<TensorSpec> OuterTensors(const ModelConfig& config) {
  const TensorNames& names = config.tensor_names;
  SpecList specs(0, 0);
  specs.Matrix(TensorRole::kEmbedding, ModelPart::kEmbedding, names.embedding, config.vocab_size, config.hidden);
  specs.Vector(TensorRole::kFinalNorm, ModelPart::kNorms, names.final_norm, config.hidden);
  if (!config.tied_embeddings) {
    specs.Matrix(TensorRole::kHead, ModelPart::kHead, names.head, config.vocab_size, config.hidden);
  }
  return specs.Take();
}

std::vector<TensorSpec> LayerTensors(const ModelConfig& config, int layer) {
  const TensorNames& names = config.tensor_names;
  const LayerSpec& spec = LayerAt(config, layer);
  const AttentionSpec& attention = spec.attention;
  const std::int64_t hidden = config.hidden;
  const std::int64_t q_width = std::int64_t{attention.num_heads} * attention.head_dim;
  const std::int64_t kv_width = std::int64_t{attention.num_kv_heads} * attention.head_dim;
  SpecList specs(layer, 0);
  specs.Vector(TensorRole::kAttentionNorm, ModelPart::kNorms, names.attention_norm, hidden);
  specs.Vector(TensorRole::kFfnNorm, ModelPart::kNorms, names.ffn_norm, hidden);
  const ModelPart part = ModelPart::kAttention;
  specs.Matrix(TensorRole::kQuery, part, names.query, q_width, hidden, attention.qkv_bias);
  specs.Matrix(TensorRole::kKey, part, names.key, kv_width, hidden, attention.qkv_bias);
  specs.Matrix(TensorRole::kValue, part, names.value, kv_width, hidden, attention.qkv_bias);
  specs.Matrix(TensorRole::kAttentionOut, part, names.attention_out, hidden, q_width, attention.out_bias);
  if (spec.moe.has_value()) {
    specs.Matrix(TensorRole::kRouter, ModelPart::kRouter, names.router, spec.moe->gate.num_experts, hidden);
  } else {
    const MlpSpec& mlp = spec.dense_mlp;
    const ModelPart ffn = ModelPart::kDenseFfn;
    specs.Matrix(TensorRole::kMlpGate, ffn, names.mlp_gate, mlp.intermediate, hidden, mlp.bias);
    specs.Matrix(TensorRole::kMlpUp, ffn, names.mlp_up, mlp.intermediate, hidden, mlp.bias);
    specs.Matrix(TensorRole::kMlpDown, ffn, names.mlp_down, hidden, mlp.intermediate, mlp.bias);
  }
  return specs.Take();
}

std::vector<TensorSpec> ExpertTensors(const ModelConfig& config, int layer, int expert) {
  const TensorNames& names = config.tensor_names;
  const LayerSpec& spec = LayerAt(config, layer);
  MOE_CHECK(spec.moe.has_value() && expert >= 0 && expert < spec.moe->gate.num_experts);
  const MlpSpec& mlp = spec.moe->expert;
  const ModelPart part = ModelPart::kExperts;
  SpecList specs(layer, expert);
  specs.Matrix(TensorRole::kMlpGate, part, names.expert_gate, mlp.intermediate, config.hidden, mlp.bias);
  specs.Matrix(TensorRole::kMlpUp, part, names.expert_up, mlp.intermediate, config.hidden, mlp.bias);
  specs.Matrix(TensorRole::kMlpDown, part, names.expert_down, config.hidden, mlp.intermediate, mlp.bias);
  return specs.Take();
}

bool MatchesPattern(std::string_view name, std::string_view pattern) {
  // Greedy with one point to come back to: the latest * and where its run ends.
  std::size_t n = 0;
  std::size_t p = 0;
  std::size_t star = std::string_view::npos;
  std::size_t run_end = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      run_end = n;
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++run_end;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace moe
