// What a family calls its tensors in a checkpoint. The defaults are Llama's; a family states what it calls otherwise.
#pragma once

#include <string>
#include <vector>

namespace moe {

/// Names without the ".weight" or ".bias" that follows. "{layer}" and "{expert}" stand for the numbers.
struct TensorNames {
  std::string embedding = "model.embed_tokens";
  std::string final_norm = "model.norm";
  std::string head = "lm_head";

  std::string attention_norm = "model.layers.{layer}.input_layernorm";
  std::string query = "model.layers.{layer}.self_attn.q_proj";
  std::string key = "model.layers.{layer}.self_attn.k_proj";
  std::string value = "model.layers.{layer}.self_attn.v_proj";
  std::string attention_out = "model.layers.{layer}.self_attn.o_proj";
  std::string ffn_norm = "model.layers.{layer}.post_attention_layernorm";

  // Dense layers.
  std::string mlp_gate = "model.layers.{layer}.mlp.gate_proj";
  std::string mlp_up = "model.layers.{layer}.mlp.up_proj";
  std::string mlp_down = "model.layers.{layer}.mlp.down_proj";

  // Sparse layers.
  std::string router = "model.layers.{layer}.mlp.gate";
  std::string expert_gate = "model.layers.{layer}.mlp.experts.{expert}.gate_proj";
  std::string expert_up = "model.layers.{layer}.mlp.experts.{expert}.up_proj";
  std::string expert_down = "model.layers.{layer}.mlp.experts.{expert}.down_proj";

  /// Full names that may be there and are not read; * stands for any run of characters. (Older files store the rotary
  /// frequencies, which follow from the configuration.)
  std::vector<std::string> ignorable = {"*.rotary_emb.inv_freq"};
};

}  // namespace moe
