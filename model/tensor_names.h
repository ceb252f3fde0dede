// What a family calls its tensors in a checkpoint. The defaults are Llama's; a family states what it calls otherwise.
#pragma once

#include <string>
#include <vector>

namespace moe {

/// How a checkpoint keeps the experts of a layer.
struct ExpertLayout {
  bool fused = false;  // one tensor for all experts, the expert its first dimension, gate and up together; else each
                       // expert has tensors of its own
  // Of fused tensors:
  bool transposed = false;   // (inputs, outputs) instead of (outputs, inputs)
  bool interleaved = false;  // gate and up alternate, gate first; else all of gate, then all of up
  bool bare_names = false;   // NAME and NAME_bias instead of NAME.weight and NAME.bias
};

/// Names without the ".weight" or ".bias" that follows. "{layer}" and "{expert}" stand for the numbers; {layer} counts
/// inside a stack. An empty name: the family has no such tensor.
struct TensorNames {
  std::string embedding = "model.embed_tokens";
  /// Other names under which files repeat the embedding: equal to it, and not read. A tied model's head is one too.
  std::vector<std::string> embedding_copies;
  std::string positions;  // learnt positions
  std::string final_norm = "model.norm";
  std::string head = "lm_head";

  std::string attention_norm = "model.layers.{layer}.input_layernorm";
  std::string query = "model.layers.{layer}.self_attn.q_proj";
  std::string key = "model.layers.{layer}.self_attn.k_proj";
  std::string value = "model.layers.{layer}.self_attn.v_proj";
  std::string attention_out = "model.layers.{layer}.self_attn.o_proj";
  std::string query_norm = "model.layers.{layer}.self_attn.q_norm";
  std::string key_norm = "model.layers.{layer}.self_attn.k_norm";
  std::string sinks = "model.layers.{layer}.self_attn.sinks";  // a full name
  std::string relative_bias;                                   // (buckets, heads), in the first layer of a stack
  std::string attention_post_norm;                             // counted families
  std::string ffn_post_norm;                                   // counted families

  // Latent attention.
  std::string query_down = "model.layers.{layer}.self_attn.q_a_proj";
  std::string query_down_norm = "model.layers.{layer}.self_attn.q_a_layernorm";
  std::string query_up = "model.layers.{layer}.self_attn.q_b_proj";
  std::string kv_down = "model.layers.{layer}.self_attn.kv_a_proj_with_mqa";
  std::string kv_down_norm = "model.layers.{layer}.self_attn.kv_a_layernorm";
  std::string kv_up = "model.layers.{layer}.self_attn.kv_b_proj";

  // Attention on the encoder's output.
  std::string cross_norm;
  std::string cross_query;
  std::string cross_key;
  std::string cross_value;
  std::string cross_out;

  std::string ffn_norm = "model.layers.{layer}.post_attention_layernorm";

  // Dense layers. An MLP without a gate has `mlp_up` and `mlp_down` only.
  std::string mlp_gate = "model.layers.{layer}.mlp.gate_proj";
  std::string mlp_up = "model.layers.{layer}.mlp.up_proj";
  std::string mlp_down = "model.layers.{layer}.mlp.down_proj";

  // Sparse layers.
  std::string router = "model.layers.{layer}.mlp.gate";
  std::string correction_bias = "model.layers.{layer}.mlp.gate.e_score_correction_bias";  // a full name
  ExpertLayout expert_layout;
  std::string expert_gate = "model.layers.{layer}.mlp.experts.{expert}.gate_proj";
  std::string expert_up = "model.layers.{layer}.mlp.experts.{expert}.up_proj";
  std::string expert_down = "model.layers.{layer}.mlp.experts.{expert}.down_proj";
  std::string expert_gate_up;  // fused: gate and up; `expert_down` is the other one
  std::string shared_gate = "model.layers.{layer}.mlp.shared_experts.gate_proj";
  std::string shared_up = "model.layers.{layer}.mlp.shared_experts.up_proj";
  std::string shared_down = "model.layers.{layer}.mlp.shared_experts.down_proj";
  std::string shared_router = "model.layers.{layer}.mlp.shared_expert_gate";  // (1, hidden)

  /// Full names that may be there and are not read; * stands for any run of characters. (Older files store the rotary
  /// frequencies, which follow from the configuration.)
  std::vector<std::string> ignorable = {"*.rotary_emb.inv_freq"};
  /// Tensors called PREFIX + number + "." + anything, with a number of at least ModelConfig::layers, may be there and
  /// are not read: prediction layers. Empty: there are none.
  std::string prediction_prefix;
};

}  // namespace moe
