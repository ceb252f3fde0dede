#include "tests/model/random_checkpoint.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/text.h"
#include "tests/model/random_config.h"
#include "tests/model/stored_values.h"

namespace moe {

using nlohmann::json;

Result<WholeModel> LoadWhole(const ModelConfig& config, const Checkpoint& checkpoint, WeightType type, ThreadPool& pool,
                             bool backwards) {
  WholeModel model;
  model.experts.resize(config.layers.size());
  const auto load_experts = [&]() -> Status {
    for (int i = 0; i < config.num_layers(); ++i) {
      const int layer = backwards ? config.num_layers() - 1 - i : i;
      const auto& moe = config.layers[static_cast<std::size_t>(layer)].moe;
      if (!moe) continue;
      const int count = moe->gate.num_experts;
      auto& experts = model.experts[static_cast<std::size_t>(layer)];
      experts.resize(static_cast<std::size_t>(count));
      for (int j = 0; j < count; ++j) {
        const int expert = backwards ? count - 1 - j : j;
        MOE_ASSIGN_OR_RETURN(experts[static_cast<std::size_t>(expert)],
                             LoadExpertWeights(config, checkpoint, layer, expert, type));
      }
    }
    return Status::Ok();
  };
  if (backwards) MOE_RETURN_IF_ERROR(load_experts());
  MOE_ASSIGN_OR_RETURN(model.dense, LoadDenseWeights(config, checkpoint, type, pool));
  if (!backwards) MOE_RETURN_IF_ERROR(load_experts());
  return model;
}

namespace {

using Values = std::vector<float>;

/// Rows [first, first + count) of a matrix in memory.
Values Rows(const PackedMatrix& matrix, std::int64_t first, std::int64_t count) {
  const Values all = Unpack(matrix);
  const auto cols = static_cast<std::int64_t>(matrix.cols());
  MOE_CHECK((first + count) * cols <= std::ssize(all), "a tensor is larger than the matrix that should hold it");
  return {all.begin() + first * cols, all.begin() + (first + count) * cols};
}

Values Joined(Values first, const Values& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

Values Part(const Values& values, std::int64_t first, std::int64_t count) {
  MOE_CHECK(first + count <= std::ssize(values), "a tensor is larger than the vector that should hold it");
  return {values.begin() + first, values.begin() + first + count};
}

/// Lists the tensors of one model. Names and shapes are those of the published files; nothing here looks at
/// ModelConfig.
class Lister {
 public:
  Lister(const json& config, const WholeModel& model)
      : config_(TextConfig(config)),
        type_(config_["model_type"]),
        prefix_(config["model_type"] == "llama4" ? "language_model." : ""),
        model_(model),
        hidden_(Int(type_ == "switch_transformers" ? "d_model" : "hidden_size")) {}

  std::vector<PublishedTensor> List() {
    if (type_ == "switch_transformers") {
      Switch();
    } else {
      Decoder();
    }
    return std::move(tensors_);
  }

 private:
  bool Null(const char* key) const { return !config_.contains(key) || config_[key].is_null(); }
  std::int64_t Int(const char* key, std::int64_t absent = -1) const {
    MOE_CHECK(absent >= 0 || !Null(key), key);
    return Null(key) ? absent : config_[key].get<std::int64_t>();
  }
  bool Flag(const char* key, bool absent = false) const { return Null(key) ? absent : config_[key].get<bool>(); }
  bool Is(std::initializer_list<const char*> types) const {
    return std::ranges::any_of(types, [&](const char* type) { return type_ == type; });
  }

  void Add(const std::string& name, std::vector<std::int64_t> shape, ModelPart part, Values values,
           Quantised quantised = Quantised::kNever) {
    std::int64_t elements = 1;
    for (const std::int64_t dim : shape) elements *= dim;
    MOE_CHECK(elements == std::ssize(values), name);
    tensors_.push_back({prefix_ + name, std::move(shape), part, quantised, std::move(values)});
  }
  void Norm(const std::string& name, const Values& values, std::int64_t size) {
    Add(name + ".weight", {size}, ModelPart::kNorms, Part(values, 0, size));
  }
  /// Rows of `matrix`, which may hold several tensors, and of its bias when `bias` is given.
  void Projection(const std::string& name, ModelPart part, const PackedMatrix& matrix, std::int64_t first,
                  std::int64_t rows, const Values* bias = nullptr) {
    Add(name + ".weight", {rows, static_cast<std::int64_t>(matrix.cols())}, part, Rows(matrix, first, rows),
        Quantised::kFp8);
    if (bias != nullptr) Add(name + ".bias", {rows}, part, Part(*bias, first, rows));
  }
  void GatedMlp(const std::string& name, ModelPart part, const MlpWeights& mlp, std::int64_t inner, bool bias,
                const char* gate = "gate_proj", const char* up = "up_proj", const char* down = "down_proj") {
    Projection(name + gate, part, mlp.gate, 0, inner, bias ? &mlp.gate_bias : nullptr);
    Projection(name + up, part, mlp.up, 0, inner, bias ? &mlp.up_bias : nullptr);
    Projection(name + down, part, mlp.down, 0, hidden_, bias ? &mlp.down_bias : nullptr);
  }

  void Outer(const char* embedding, bool tied);
  void Decoder();
  void Heads(const std::string& prefix, const AttentionWeights& weights);
  void Latent(const std::string& prefix, const AttentionWeights& weights);
  void Ffn(const std::string& prefix, std::int64_t layer, const LayerWeights& weights);
  void Experts(const std::string& prefix, const std::vector<MlpWeights>& experts);
  void FusedExperts(const std::string& gate_up, const std::string& down, const std::vector<MlpWeights>& experts,
                    bool transposed, bool interleaved, Quantised quantised);
  bool IsSparse(std::int64_t layer) const;
  std::int64_t ExpertInner() const;
  std::int64_t SharedInner() const;
  void Switch();
  void SwitchBlock(bool decoder, std::int64_t block, std::int64_t layer, bool sparse);

  const json& config_;
  std::string type_;
  std::string prefix_;
  const WholeModel& model_;
  std::int64_t hidden_;
  std::vector<PublishedTensor> tensors_;
};

void Lister::Outer(const char* embedding, bool tied) {
  const std::int64_t vocab = Int("vocab_size");
  Values rows;
  for (std::int64_t i = 0; i < vocab * hidden_; ++i) {
    rows.push_back(ReadElement(model_.dense.embedding.data() + 4 * i, WeightType::kF32));
  }
  Add(embedding, {vocab, hidden_}, ModelPart::kEmbedding, std::move(rows));
  if (!tied) Add("lm_head.weight", {vocab, hidden_}, ModelPart::kHead, Rows(model_.dense.head, 0, vocab));
}

void Lister::Decoder() {
  Outer("model.embed_tokens.weight", Flag("tie_word_embeddings"));
  Norm("model.norm", model_.dense.final_norm, hidden_);
  for (std::int64_t layer = 0; layer < Int("num_hidden_layers"); ++layer) {
    const LayerWeights& weights = model_.dense.layers[static_cast<std::size_t>(layer)];
    const std::string prefix = Cat("model.layers.", layer, ".");
    Norm(prefix + "input_layernorm", weights.attention_norm, hidden_);
    Norm(prefix + "post_attention_layernorm", weights.ffn_norm, hidden_);
    if (Is({"deepseek_v2", "deepseek_v3"})) {
      Latent(prefix + "self_attn.", weights.attention);
    } else {
      Heads(prefix + "self_attn.", weights.attention);
    }
    Ffn(prefix, layer, weights);
  }
}

void Lister::Heads(const std::string& prefix, const AttentionWeights& weights) {
  const ModelPart part = ModelPart::kAttention;
  const std::int64_t heads = Int("num_attention_heads");
  const bool head_dim_absent = !config_.contains("head_dim");
  std::int64_t head_dim = Int("head_dim", hidden_ / heads);
  if (head_dim_absent && Is({"qwen3", "llama4_text"})) head_dim = 128;
  if (head_dim_absent && Is({"gpt_oss"})) head_dim = 64;
  const std::int64_t queries = heads * head_dim;
  const std::int64_t keys = Int("num_key_value_heads", heads) * head_dim;
  bool bias = Flag("attention_bias", Is({"gpt_oss"}));
  if (Is({"qwen2_moe"})) bias = Flag("qkv_bias", true);
  if (Is({"mistral", "mixtral"})) bias = false;
  const Values* biases = bias ? &weights.projection_bias : nullptr;
  Projection(prefix + "q_proj", part, weights.projection, 0, queries, biases);
  Projection(prefix + "k_proj", part, weights.projection, queries, keys, biases);
  Projection(prefix + "v_proj", part, weights.projection, queries + keys, keys, biases);
  const bool out_bias = bias && !Is({"qwen2_moe", "glm4_moe"});
  Projection(prefix + "o_proj", part, weights.out, 0, hidden_, out_bias ? &weights.out_bias : nullptr);
  if (Is({"gpt_oss"})) Add(prefix + "sinks", {heads}, part, weights.sinks);
  const bool whole = Is({"olmoe"});
  if (whole || Is({"qwen3", "qwen3_moe"}) || (Is({"glm4_moe"}) && Flag("use_qk_norm"))) {
    Norm(prefix + "q_norm", weights.query_norm, whole ? queries : head_dim);
    Norm(prefix + "k_norm", weights.key_norm, whole ? keys : head_dim);
  }
}

void Lister::Latent(const std::string& prefix, const AttentionWeights& weights) {
  const ModelPart part = ModelPart::kAttention;
  const std::int64_t heads = Int("num_attention_heads");
  const std::int64_t nope = Int("qk_nope_head_dim");
  const std::int64_t rope = Int("qk_rope_head_dim");
  const std::int64_t value = Int("v_head_dim");
  const std::int64_t rank = Int("kv_lora_rank");
  const bool bias = Flag("attention_bias");
  const Values* biases = bias ? &weights.projection_bias : nullptr;
  std::int64_t query = heads * (nope + rope);
  if (Null("q_lora_rank")) {
    Projection(prefix + "q_proj", part, weights.projection, 0, query);
  } else {
    Projection(prefix + "q_b_proj", part, weights.query_up, 0, query);
    query = Int("q_lora_rank");
    Projection(prefix + "q_a_proj", part, weights.projection, 0, query, biases);
    Norm(prefix + "q_a_layernorm", weights.query_down_norm, query);
  }
  Projection(prefix + "kv_a_proj_with_mqa", part, weights.projection, query, rank + rope, biases);
  Norm(prefix + "kv_a_layernorm", weights.kv_down_norm, rank);
  Projection(prefix + "o_proj", part, weights.out, 0, hidden_, bias ? &weights.out_bias : nullptr);
  // A head's nope rows of keys, then its rows of values; keys lie in memory transposed.
  Values up;
  for (std::size_t head = 0; head < static_cast<std::size_t>(heads); ++head) {
    const Values keys = Unpack(weights.key_up[head]);
    for (std::int64_t i = 0; i < nope; ++i) {
      for (std::int64_t j = 0; j < rank; ++j) up.push_back(keys[static_cast<std::size_t>(j * nope + i)]);
    }
    const Values values = Rows(weights.value_up[head], 0, value);
    up.insert(up.end(), values.begin(), values.end());
  }
  Add(prefix + "kv_b_proj.weight", {heads * (nope + value), rank}, part, std::move(up), Quantised::kFp8);
}

bool Lister::IsSparse(std::int64_t layer) const {
  const auto listed = [&](const char* key) {
    return !Null(key) && std::ranges::find(config_[key], json(layer)) != config_[key].end();
  };
  if (Is({"llama", "mistral", "qwen3"})) return false;
  if (Is({"qwen2_moe", "qwen3_moe"})) {
    return Int("num_experts") > 0 && (layer + 1) % Int("decoder_sparse_step", 1) == 0 && !listed("mlp_only_layers");
  }
  if (Is({"deepseek_v2", "deepseek_v3", "glm4_moe"})) {
    const int absent = Is({"deepseek_v3"}) ? 3 : Is({"glm4_moe"}) ? 1 : 0;
    return !Null("n_routed_experts") && layer >= Int("first_k_dense_replace", absent);
  }
  if (Is({"llama4_text"})) {
    return Null("moe_layers") ? (layer + 1) % Int("interleave_moe_layer_step") == 0 : listed("moe_layers");
  }
  return true;
}

std::int64_t Lister::ExpertInner() const {
  return Null("moe_intermediate_size") ? Int("intermediate_size") : Int("moe_intermediate_size");
}

/// 0: no shared experts.
std::int64_t Lister::SharedInner() const {
  if (Is({"llama4_text"})) return Int("intermediate_size");
  if (Is({"qwen2_moe"})) return Int("shared_expert_intermediate_size");
  return Is({"deepseek_v2", "deepseek_v3", "glm4_moe"}) ? Int("n_shared_experts", 0) * ExpertInner() : 0;
}

void Lister::Ffn(const std::string& prefix, std::int64_t layer, const LayerWeights& weights) {
  const bool llama4 = Is({"llama4_text"});
  const std::string mlp = prefix + (llama4 ? "feed_forward." : "mlp.");
  if (!IsSparse(layer)) {
    const std::int64_t inner = Int(llama4 ? "intermediate_size_mlp" : "intermediate_size");
    return GatedMlp(mlp, ModelPart::kDenseFfn, weights.mlp, inner, Is({"llama"}) && Flag("mlp_bias"));
  }
  const std::vector<MlpWeights>& experts = model_.experts[static_cast<std::size_t>(layer)];
  const std::int64_t count = std::ssize(experts);
  std::string router = mlp + (Is({"llama4_text", "gpt_oss"}) ? "router" : "gate");
  if (Is({"mixtral"})) router = prefix + "block_sparse_moe.gate";
  if (Is({"granitemoe"})) router = prefix + "block_sparse_moe.router.layer";
  Add(router + ".weight", {count, hidden_}, ModelPart::kRouter, Rows(weights.gate, 0, count));
  if (Is({"gpt_oss"})) Add(router + ".bias", {count}, ModelPart::kRouter, weights.gate_bias);
  if (Is({"deepseek_v3", "glm4_moe"})) {
    Add(router + ".e_score_correction_bias", {count}, ModelPart::kRouter, weights.correction_bias);
  }
  if (const std::int64_t inner = SharedInner(); inner > 0) {
    const bool several = Is({"deepseek_v2", "deepseek_v3", "glm4_moe"});
    GatedMlp(mlp + (several ? "shared_experts." : "shared_expert."), ModelPart::kSharedExperts, weights.mlp, inner,
             false);
  }
  if (Is({"qwen2_moe"})) {
    Add(mlp + "shared_expert_gate.weight", {1, hidden_}, ModelPart::kSharedExperts, Rows(weights.shared_gate, 0, 1));
  }
  Experts(prefix, experts);
}

void Lister::Experts(const std::string& prefix, const std::vector<MlpWeights>& experts) {
  if (Is({"gpt_oss"})) {
    return FusedExperts(prefix + "mlp.experts.gate_up_proj", prefix + "mlp.experts.down_proj", experts, true, true,
                        Quantised::kMxfp4);
  }
  if (Is({"llama4_text"})) {
    const std::string mlp = prefix + "feed_forward.experts.";
    return FusedExperts(mlp + "gate_up_proj", mlp + "down_proj", experts, true, false, Quantised::kNever);
  }
  if (Is({"granitemoe"})) {
    const std::string mlp = prefix + "block_sparse_moe.";
    return FusedExperts(mlp + "input_linear.weight", mlp + "output_linear.weight", experts, false, false,
                        Quantised::kNever);
  }
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const ModelPart part = ModelPart::kExperts;
    if (Is({"mixtral"})) {
      GatedMlp(Cat(prefix, "block_sparse_moe.experts.", e, "."), part, experts[e], ExpertInner(), false, "w1", "w3",
               "w2");
    } else {
      GatedMlp(Cat(prefix, "mlp.experts.", e, "."), part, experts[e], ExpertInner(), false);
    }
  }
}

/// One tensor of all experts' gates and ups, one of their downs; with biases in gpt-oss.
void Lister::FusedExperts(const std::string& gate_up, const std::string& down, const std::vector<MlpWeights>& experts,
                          bool transposed, bool interleaved, Quantised quantised) {
  const std::int64_t inner = ExpertInner();
  const std::int64_t count = std::ssize(experts);
  // Where output `o` of the file lies in memory: all gates, then all ups.
  const auto held_row = [&](std::int64_t o) { return interleaved ? o / 2 + (o % 2) * inner : o; };
  const auto same_row = [](std::int64_t o) { return o; };
  const auto append = [&](const Values& held, std::int64_t inputs, std::int64_t outputs, auto row_of, Values& values) {
    MOE_CHECK(outputs * inputs == std::ssize(held), gate_up);
    for (std::int64_t a = 0; a < (transposed ? inputs : outputs); ++a) {
      for (std::int64_t b = 0; b < (transposed ? outputs : inputs); ++b) {
        const std::int64_t row = row_of(transposed ? b : a);
        values.push_back(held[static_cast<std::size_t>(row * inputs + (transposed ? a : b))]);
      }
    }
  };
  Values gates_ups;
  Values downs;
  Values inner_biases;
  Values down_biases;
  for (const MlpWeights& expert : experts) {
    append(Joined(Unpack(expert.gate), Unpack(expert.up)), hidden_, 2 * inner, held_row, gates_ups);
    append(Unpack(expert.down), inner, hidden_, same_row, downs);
    if (!Is({"gpt_oss"})) continue;
    const Values biases = Joined(expert.gate_bias, expert.up_bias);
    for (std::int64_t o = 0; o < 2 * inner; ++o) inner_biases.push_back(biases[static_cast<std::size_t>(held_row(o))]);
    down_biases.insert(down_biases.end(), expert.down_bias.begin(), expert.down_bias.end());
  }
  const ModelPart part = ModelPart::kExperts;
  std::vector<std::int64_t> inner_shape = {count, 2 * inner, hidden_};
  std::vector<std::int64_t> down_shape = {count, hidden_, inner};
  if (transposed) {
    std::swap(inner_shape[1], inner_shape[2]);
    std::swap(down_shape[1], down_shape[2]);
  }
  Add(gate_up, inner_shape, part, std::move(gates_ups), quantised);
  Add(down, down_shape, part, std::move(downs), quantised);
  if (!Is({"gpt_oss"})) return;
  Add(gate_up + "_bias", {count, 2 * inner}, part, std::move(inner_biases));
  Add(down + "_bias", {count, hidden_}, part, std::move(down_biases));
}

void Lister::Switch() {
  Outer("shared.weight", Flag("tie_word_embeddings", true));
  Norm("encoder.final_layer_norm", model_.dense.encoder_norm, hidden_);
  Norm("decoder.final_layer_norm", model_.dense.final_norm, hidden_);
  std::int64_t layer = 0;
  for (const bool decoder : {false, true}) {
    const std::int64_t blocks = decoder ? Int("num_decoder_layers", Int("num_layers")) : Int("num_layers");
    const std::int64_t step = blocks / Int(decoder ? "num_sparse_decoder_layers" : "num_sparse_encoder_layers");
    for (std::int64_t block = 0; block < blocks; ++block, ++layer) {
      SwitchBlock(decoder, block, layer, step == 1 || block % step == 1);
    }
  }
}

void Lister::SwitchBlock(bool decoder, std::int64_t block, std::int64_t layer, bool sparse) {
  const LayerWeights& weights = model_.dense.layers[static_cast<std::size_t>(layer)];
  const ModelPart part = ModelPart::kAttention;
  const std::int64_t heads = Int("num_heads");
  const std::int64_t width = heads * Int("d_kv");
  const std::string prefix = Cat(decoder ? "decoder" : "encoder", ".block.", block, ".layer.");
  const std::string self = prefix + "0.SelfAttention.";
  Norm(prefix + "0.layer_norm", weights.attention_norm, hidden_);
  Projection(self + "q", part, weights.attention.projection, 0, width);
  Projection(self + "k", part, weights.attention.projection, width, width);
  Projection(self + "v", part, weights.attention.projection, 2 * width, width);
  Projection(self + "o", part, weights.attention.out, 0, hidden_);
  if (block == 0) {
    const Values& bias = decoder ? model_.dense.relative_bias : model_.dense.encoder_relative_bias;
    Add(self + "relative_attention_bias.weight", {Int("relative_attention_num_buckets"), heads}, part, bias);
  }
  if (decoder) {
    const std::string cross = prefix + "1.EncDecAttention.";
    Norm(prefix + "1.layer_norm", weights.cross->norm, hidden_);
    Projection(cross + "q", part, weights.cross->query, 0, width);
    Projection(cross + "k", part, weights.cross->key_value, 0, width);
    Projection(cross + "v", part, weights.cross->key_value, width, width);
    Projection(cross + "o", part, weights.cross->out, 0, hidden_);
  }
  const std::string ffn = prefix + (decoder ? "2." : "1.");
  const std::int64_t inner = Int("d_ff");
  Norm(ffn + "layer_norm", weights.ffn_norm, hidden_);
  const auto mlp = [&](const std::string& name, ModelPart of, const MlpWeights& from) {
    Projection(name + "wi", of, from.up, 0, inner);
    Projection(name + "wo", of, from.down, 0, hidden_);
  };
  if (!sparse) return mlp(ffn + "mlp.", ModelPart::kDenseFfn, weights.mlp);
  const std::vector<MlpWeights>& experts = model_.experts[static_cast<std::size_t>(layer)];
  const std::int64_t count = std::ssize(experts);
  Add(ffn + "mlp.router.classifier.weight", {count, hidden_}, ModelPart::kRouter, Rows(weights.gate, 0, count));
  for (std::int64_t e = 0; e < count; ++e) {
    mlp(Cat(ffn, "mlp.experts.expert_", e, "."), ModelPart::kExperts, experts[static_cast<std::size_t>(e)]);
  }
}

}  // namespace

std::vector<PublishedTensor> PublishedTensors(const json& config, const WholeModel& weights) {
  return Lister(config, weights).List();
}

}  // namespace moe
