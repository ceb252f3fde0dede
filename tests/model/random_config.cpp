#include "tests/model/random_config.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace moe {

using nlohmann::json;

std::int64_t Uniform(std::mt19937_64& random, std::int64_t low, std::int64_t high) {
  const std::uint64_t span = static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low) + 1;
  return low + static_cast<std::int64_t>(span == 0 ? random() : random() % span);
}

namespace {

constexpr const char* kScalings[] = {
    R"({"rope_type": "default"})",
    R"({"rope_type": "linear", "factor": 2.5})",
    R"({"type": "linear", "factor": 8})",
    R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4})",
    R"({"rope_type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": 1})",
    R"({"type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.5})",
};

/// Fills in one configuration, key by key.
class Maker {
 public:
  explicit Maker(std::mt19937_64& random) : random_(random) {}

  std::int64_t Int(std::int64_t low, std::int64_t high) { return Uniform(random_, low, high); }
  bool Coin() { return OneIn(random_, 2); }
  json Pick(std::vector<json> values) { return values[static_cast<std::size_t>(Int(0, std::ssize(values) - 1))]; }
  /// The key with one of `values`, or without it when the value is discarded().
  void Set(const std::string& key, std::vector<json> values) {
    json value = Pick(std::move(values));
    if (!value.is_discarded()) config[key] = std::move(value);
  }
  std::int64_t Put(const std::string& key, std::int64_t value) {
    config[key] = value;
    return value;
  }
  static json Absent() { return json(json::value_t::discarded); }

  // Sizes that are no multiples of anything, and now and then of what kernels and blocks like.
  std::int64_t Size() { return Coin() ? Int(5, 70) : 16 * Int(1, 5); }

  void Sizes(const char* type) {
    config["model_type"] = type;
    Put("vocab_size", Int(3, 90));
    Put("max_position_embeddings", Int(1, 4096));
    config["rms_norm_eps"] = 1e-6;
    Set("tie_word_embeddings", {Absent(), true, false, nullptr});
    Set("hidden_act", {Absent(), "silu"});
    Set("torch_dtype", {Absent(), "float32", "bfloat16", "float16"});
    Put("num_hidden_layers", Int(1, 4));
  }
  /// Heads of the hidden size given by `hidden_step` times something; `state_head_dim`: always says head_dim.
  void Heads(bool head_dim_required = false, std::int64_t hidden_step = 1) {
    const std::int64_t kv = Int(1, 3);
    const std::int64_t heads = Put("num_attention_heads", kv * Int(1, 3));
    Set("num_key_value_heads", kv == heads ? std::vector<json>{kv, Absent(), nullptr} : std::vector<json>{kv});
    if (head_dim_required || Coin()) {
      Put("head_dim", 2 * Int(1, 12));
      Put("hidden_size", hidden_step * (hidden_step == 1 ? Size() : Int(1, 4)));
    } else {
      Put("hidden_size", heads * hidden_step * 2 * Int(1, hidden_step == 1 ? 8 : 2));
      Set("head_dim", {Absent(), nullptr});
    }
  }
  json Scaling() {
    json scaling = json::parse(kScalings[static_cast<std::size_t>(Int(0, std::ssize(kScalings) - 1))]);
    if (Coin()) scaling["original_max_position_embeddings"] = Int(1, 4096);
    return scaling;
  }
  void Rope() {
    if (OneIn(random_, 3)) {
      json parameters = Scaling();
      if (Coin()) parameters["rope_theta"] = 1e6;
      config["rope_parameters"] = parameters;
      return;
    }
    Set("rope_theta", {Absent(), 10000, 5e5});
    Set("rope_scaling", {Absent(), nullptr, Scaling(), Scaling()});
  }
  /// Experts and k under their usual keys.
  void Experts(const char* key) {
    const std::int64_t experts = Put(key, Int(1, 7));
    Put("num_experts_per_tok", Int(1, experts));
  }
  void Window() { Set("sliding_window", {Absent(), nullptr, Int(1, 100)}); }
  void PerhapsFp8() {
    if (!OneIn(random_, 3)) return;
    config["quantization_config"] = json::parse(R"({"quant_method": "fp8", "weight_block_size": [128, 128],
                                                    "fmt": "e4m3", "activation_scheme": "dynamic"})");
    // Blocks with ragged edges, when nothing else depends on the size.
    for (const char* inner : {"intermediate_size", "moe_intermediate_size", "kv_lora_rank"}) {
      if (config.contains(inner) && Coin()) Put(inner, Int(120, 140));
    }
    if (config.contains("head_dim") && !config["head_dim"].is_null()) Put("hidden_size", Int(120, 264));
  }

  void SparseFfn();
  void Llama();
  void Mistral();
  void Mixtral();
  void Qwen2Moe();
  void Qwen3Moe();
  void Qwen3();
  void Olmoe();
  void Deepseek(bool v3);
  void GptOss();
  void Llama4Text();
  void Llama4();
  void Switch();
  void Glm4Moe();
  void GraniteMoe();

  json config = json::object();

 private:
  std::mt19937_64& random_;
};

void Maker::Llama() {
  Sizes("llama");
  Heads();
  Rope();
  Put("intermediate_size", Size());
  Set("attention_bias", {Absent(), true, false});
  Set("mlp_bias", {Absent(), true, false});
  PerhapsFp8();
}

void Maker::Mistral() {
  Sizes("mistral");
  Heads();
  Rope();
  Window();
  Put("intermediate_size", Size());
  PerhapsFp8();
}

void Maker::Mixtral() {
  Sizes("mixtral");
  Heads();
  Rope();
  Window();
  Put("intermediate_size", Size());
  Experts("num_local_experts");
  PerhapsFp8();
}

/// Qwen's: both kinds of FFN, and which layers have which.
void Maker::SparseFfn() {
  Put("intermediate_size", Size());
  Put("moe_intermediate_size", Size());
  Experts("num_experts");
  if (OneIn(random_, 8)) config["num_experts"] = 0;
  Set("norm_topk_prob", {Absent(), true, false});
  Set("decoder_sparse_step", {Absent(), 1, 2, 3});
  Set("mlp_only_layers", {Absent(), json::array(), json::array({0}), json::array({1, 0}), json::array({2})});
}

void Maker::Qwen2Moe() {
  Sizes("qwen2_moe");
  Heads();
  Rope();
  SparseFfn();
  Put("shared_expert_intermediate_size", Size());
  Set("qkv_bias", {Absent(), true, false});
  PerhapsFp8();
}

void Maker::Qwen3Moe() {
  Sizes("qwen3_moe");
  Heads();
  Rope();
  SparseFfn();
  Set("attention_bias", {Absent(), true, false});
  PerhapsFp8();
}

void Maker::Qwen3() {
  Sizes("qwen3");
  Heads(/*head_dim_required=*/true);
  if (OneIn(random_, 4)) config.erase("head_dim");
  Rope();
  Put("intermediate_size", Size());
  Set("attention_bias", {Absent(), true, false});
  PerhapsFp8();
}

void Maker::Olmoe() {
  Sizes("olmoe");
  Heads();
  Rope();
  Put("intermediate_size", Size());
  Experts("num_experts");
  Set("norm_topk_prob", {Absent(), true, false});
  Set("clip_qkv", {Absent(), nullptr, 1.5});
  Set("attention_bias", {Absent(), true, false});
  PerhapsFp8();
}

void Maker::Deepseek(bool v3) {
  Sizes(v3 ? "deepseek_v3" : "deepseek_v2");
  Put("num_attention_heads", Int(1, 5));
  Put("hidden_size", Size());
  config["q_lora_rank"] = Pick({nullptr, Int(1, 40)});
  Put("kv_lora_rank", Int(1, 40));
  Put("qk_nope_head_dim", Int(1, 20));
  Put("qk_rope_head_dim", 2 * Int(1, 8));
  Put("v_head_dim", Int(1, 24));
  Rope();
  Set("attention_bias", {Absent(), true, false});
  Put("intermediate_size", Size());
  Put("moe_intermediate_size", Size());
  const std::int64_t groups = Int(1, 3);
  const std::int64_t top_groups = Int(1, groups);
  const std::int64_t group_size = Int(2, 4);
  Put("n_routed_experts", groups * group_size);
  Put("num_experts_per_tok", Int(1, top_groups * group_size));
  Put("n_group", groups);
  Put("topk_group", top_groups);
  config["n_shared_experts"] = Pick({nullptr, 0, 1, 2});
  Put("num_nextn_predict_layers", v3 ? Int(0, 2) : 0);
  Set("first_k_dense_replace", {Absent(), 0, 1, 2, 9});
  config["routed_scaling_factor"] = 2.5;
  config["topk_method"] = v3 ? "noaux_tc" : Pick({"greedy", "group_limited_greedy"});
  if (v3) {
    Set("rope_interleave", {Absent(), true, false});
    Set("norm_topk_prob", {Absent(), true, false});
    Set("scoring_func", {Absent(), "sigmoid"});
  }
  PerhapsFp8();
  if (config.contains("quantization_config")) Put("hidden_size", Int(120, 200));
}

void Maker::GptOss() {
  Sizes("gpt_oss");
  const bool blocks = !OneIn(random_, 3);
  Heads(/*head_dim_required=*/true, blocks ? 32 : 1);
  if (OneIn(random_, 4)) config.erase("head_dim");
  Rope();
  if (config.contains("rope_scaling") && config["rope_scaling"].is_null()) config.erase("rope_scaling");
  Put("intermediate_size", blocks ? 32 * Int(1, 3) : Size());
  Experts("num_local_experts");
  if (Coin()) config["experts_per_token"] = config["num_experts_per_tok"];
  Put("sliding_window", Int(1, 64));
  Set("attention_bias", {Absent(), true, false});
  Set("swiglu_limit", {Absent(), 7.0, 1.5});
  if (Coin()) {
    json types = json::array();
    for (int l = 0; l < config["num_hidden_layers"]; ++l)
      types.push_back(Pick({"full_attention", "sliding_attention"}));
    config["layer_types"] = types;
  }
  if (blocks) config["quantization_config"]["quant_method"] = "mxfp4";
}

void Maker::Llama4Text() {
  Sizes("llama4_text");
  Heads(/*head_dim_required=*/true);
  if (OneIn(random_, 4)) config.erase("head_dim");
  Rope();
  Put("intermediate_size", Size());
  Put("intermediate_size_mlp", Size());
  Experts("num_local_experts");
  Put("interleave_moe_layer_step", Int(1, 3));
  Set("moe_layers", {Absent(), Absent(), json::array(), json::array({0}), json::array({1, 3})});
  Set("attention_bias", {Absent(), true, false});
  Set("use_qk_norm", {Absent(), true, false});
  Set("attention_chunk_size", {Absent(), nullptr, 8});
  Set("no_rope_layers", {Absent(), json::array(), json::array({1, 0, 1, 0, 1})});
  Set("attn_temperature_tuning", {Absent(), true, 4, 0, nullptr});
}

void Maker::Llama4() {
  Llama4Text();
  json outer = json::object();
  outer["model_type"] = "llama4";
  outer["text_config"] = std::move(config);
  outer["vision_config"]["hidden_size"] = 8;
  config = std::move(outer);
}

void Maker::Switch() {
  config["model_type"] = "switch_transformers";
  Put("vocab_size", Int(3, 90));
  Put("d_model", Size());
  Put("d_kv", Int(1, 20));
  Put("d_ff", Size());
  Put("num_heads", Int(1, 5));
  const std::int64_t layers = Put("num_layers", Int(1, 4));
  std::int64_t decoder_layers = layers;
  if (Coin()) decoder_layers = Put("num_decoder_layers", Int(1, 4));
  Put("num_sparse_encoder_layers", Int(1, layers));
  Put("num_sparse_decoder_layers", Int(1, decoder_layers));
  Put("num_experts", Int(1, 6));
  Put("expert_capacity", Int(1, 64));
  Put("relative_attention_num_buckets", Int(4, 40));
  Put("relative_attention_max_distance", Int(21, 256));
  Put("decoder_start_token_id", Int(0, 2));
  config["layer_norm_epsilon"] = 1e-6;
  Set("n_positions", {Absent(), 512});
  Set("tie_word_embeddings", {Absent(), true, false});
  Set("dtype", {Absent(), "float32", "bfloat16"});
}

void Maker::Glm4Moe() {
  Deepseek(/*v3=*/true);
  config["model_type"] = "glm4_moe";
  for (const char* key : {"q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
                          "rope_interleave", "quantization_config"}) {
    config.erase(key);
  }
  Heads(/*head_dim_required=*/true);
  Put("head_dim", 4 * Int(1, 6));
  Set("partial_rotary_factor", {Absent(), 0.5, 1.0});
  Set("use_qk_norm", {Absent(), true, false});
  PerhapsFp8();
}

void Maker::GraniteMoe() {
  Sizes("granitemoe");
  Heads();
  Rope();
  Put("intermediate_size", Size());
  Experts("num_local_experts");
  Set("attention_bias", {Absent(), true, false});
  config["attention_multiplier"] = 0.1;
  Set("embedding_multiplier", {Absent(), 12});
  Set("residual_multiplier", {Absent(), 0.22});
  Set("logits_scaling", {Absent(), 8});
}

struct MakerOfType {
  std::string_view model_type;
  void (*make)(Maker& maker);
};

constexpr MakerOfType kMakers[] = {
    {"llama", [](Maker& m) { m.Llama(); }},
    {"mistral", [](Maker& m) { m.Mistral(); }},
    {"mixtral", [](Maker& m) { m.Mixtral(); }},
    {"qwen2_moe", [](Maker& m) { m.Qwen2Moe(); }},
    {"qwen3_moe", [](Maker& m) { m.Qwen3Moe(); }},
    {"qwen3", [](Maker& m) { m.Qwen3(); }},
    {"olmoe", [](Maker& m) { m.Olmoe(); }},
    {"deepseek_v2", [](Maker& m) { m.Deepseek(false); }},
    {"deepseek_v3", [](Maker& m) { m.Deepseek(true); }},
    {"gpt_oss", [](Maker& m) { m.GptOss(); }},
    {"llama4", [](Maker& m) { m.Llama4(); }},
    {"llama4_text", [](Maker& m) { m.Llama4Text(); }},
    {"switch_transformers", [](Maker& m) { m.Switch(); }},
    {"glm4_moe", [](Maker& m) { m.Glm4Moe(); }},
    {"granitemoe", [](Maker& m) { m.GraniteMoe(); }},
};

}  // namespace

std::vector<std::string_view> RandomModelTypes() {
  std::vector<std::string_view> types;
  for (const MakerOfType& maker : kMakers) types.push_back(maker.model_type);
  return types;
}

json MakeRandomConfig(std::string_view model_type, std::mt19937_64& random) {
  for (const MakerOfType& of : kMakers) {
    if (of.model_type != model_type) continue;
    Maker maker(random);
    of.make(maker);
    return std::move(maker.config);
  }
  throw std::invalid_argument("no random configurations of " + std::string(model_type));
}

const json& TextConfig(const json& config) { return config.contains("text_config") ? config["text_config"] : config; }

}  // namespace moe
