#!/usr/bin/env python3
"""Makes the cases of this folder: tiny checkpoints, each with options that tests/goldens does not have, and what Hugging
Face transformers computes for them. Needs torch and transformers (PyPI), which nothing else here does.
Usage: make.py [CASE…]"""

import copy
import json
import math
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, SwitchTransformersForConditionalGeneration

FOLDER = pathlib.Path(__file__).parent
PROMPT_LENGTHS = (11, 1, 19, 40)
GENERATED = 16

COMMON = dict(vocab_size=120, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
PLAIN_ROPE = dict(rope_type="default", rope_theta=10000.0)
LATENT = dict(num_key_value_heads=4, intermediate_size=40, moe_intermediate_size=12, kv_lora_rank=18,
              qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=9)
GLM = dict(intermediate_size=40, moe_intermediate_size=12, n_routed_experts=8)
LLAMA4 = dict(head_dim=8, intermediate_size=20, intermediate_size_mlp=40, num_local_experts=4)
SWITCH = dict(vocab_size=120, d_model=32, d_ff=40, num_experts=4)

# Written with the keys of published files (rope_theta, rope_scaling, torch_dtype) instead of transformers 5's.
PUBLISHED_KEYS = {"llama_yarn", "deepseek_v3_mscale", "gpt_oss_yarn", "glm4_moe_quarter", "qwen2_moe_step"}
# Inside text_config, names behind language_model., as the hub has Llama 4.
NESTED = {"llama4_temperature"}

CASES = {
    "mixtral_window": ("mixtral", dict(intermediate_size=24, num_local_experts=5, num_experts_per_tok=2,
                                       sliding_window=6, head_dim=12, tie_word_embeddings=True)),
    "mixtral_all_experts": ("mixtral", dict(intermediate_size=24, num_local_experts=4, num_experts_per_tok=4,
                                            head_dim=8, rope_parameters=YARN)),
    "mistral_full": ("mistral", dict(intermediate_size=40, sliding_window=None, head_dim=20)),
    "llama_biases": ("llama", dict(intermediate_size=40, attention_bias=True, mlp_bias=True,
                                   rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=5000.0))),
    "llama_yarn": ("llama", dict(intermediate_size=40,
                                 rope_parameters=dict(YARN, beta_fast=16, beta_slow=2, attention_factor=1.2))),
    "qwen2_moe_dense_layers": ("qwen2_moe", dict(
        intermediate_size=40, moe_intermediate_size=16, shared_expert_intermediate_size=20, num_experts=6,
        num_experts_per_tok=1, norm_topk_prob=True, mlp_only_layers=[0, 2], qkv_bias=False)),
    "qwen2_moe_step": ("qwen2_moe", dict(
        intermediate_size=40, moe_intermediate_size=16, shared_expert_intermediate_size=20, num_experts=6,
        num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=3, tie_word_embeddings=True)),
    "qwen3_moe_biases": ("qwen3_moe", dict(
        intermediate_size=40, moe_intermediate_size=16, num_experts=7, num_experts_per_tok=3, norm_topk_prob=False,
        decoder_sparse_step=2, attention_bias=True, tie_word_embeddings=True, head_dim=16)),
    "qwen3_yarn": ("qwen3", dict(intermediate_size=40, attention_bias=True, head_dim=16, rope_parameters=YARN)),
    "olmoe_grouped": ("olmoe", dict(intermediate_size=12, num_experts=7, num_experts_per_tok=3, norm_topk_prob=True,
                                    clip_qkv=None, attention_bias=True)),
    "olmoe_clip": ("olmoe", dict(intermediate_size=12, num_experts=7, num_experts_per_tok=1, norm_topk_prob=False,
                                 clip_qkv=0.7, tie_word_embeddings=True)),
    "deepseek_v2_biases": ("deepseek_v2", dict(
        LATENT, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=0, q_lora_rank=20,
        attention_bias=True, topk_method="group_limited_greedy", n_group=2, topk_group=1, routed_scaling_factor=3.0)),
    "deepseek_v2_dense": ("deepseek_v2", dict(
        LATENT, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=4,
        q_lora_rank=None, topk_method="greedy", n_group=1, topk_group=1)),
    "deepseek_v3_half_split": ("deepseek_v3", dict(
        LATENT, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, first_k_dense_replace=2,
        q_lora_rank=None, attention_bias=True, n_group=1, topk_group=1, routed_scaling_factor=1.7,
        norm_topk_prob=False, rope_interleave=False)),
    "deepseek_v3_mscale": ("deepseek_v3", dict(
        LATENT, n_routed_experts=9, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=21,
        n_group=3, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True,
        rope_parameters=dict(YARN, factor=40.0, mscale=0.8, mscale_all_dim=1.1))),
    "gpt_oss_dequantised": ("gpt_oss", dict(
        head_dim=16, intermediate_size=20, num_local_experts=5, num_experts_per_tok=2, sliding_window=5,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"], swiglu_limit=1.5,
        rope_parameters=dict(PLAIN_ROPE, rope_theta=20000.0))),
    "gpt_oss_yarn": ("gpt_oss", dict(
        head_dim=16, intermediate_size=20, num_local_experts=5, num_experts_per_tok=3, sliding_window=9,
        tie_word_embeddings=True, rope_parameters=dict(YARN, rope_theta=20000.0, factor=8.0, beta_fast=32.0,
                                                       beta_slow=1.0, truncate=False))),
    "llama4_two_experts": ("llama4_text", dict(
        LLAMA4, num_experts_per_tok=2, interleave_moe_layer_step=1, no_rope_layers=[0, 1, 0, 1], use_qk_norm=False,
        attn_temperature_tuning=False, attention_chunk_size=7, rope_parameters=PLAIN_ROPE)),
    "llama4_temperature": ("llama4_text", dict(
        LLAMA4, num_experts_per_tok=1, interleave_moe_layer_step=2, no_rope_layer_interval=2, use_qk_norm=True,
        attn_temperature_tuning=True, floor_scale=3, attn_scale=0.3, attention_chunk_size=16, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=64))),
    "glm4_moe_quarter": ("glm4_moe", dict(
        GLM, head_dim=16, n_shared_experts=2, num_experts_per_tok=3, first_k_dense_replace=2, n_group=4, topk_group=2,
        routed_scaling_factor=1.3, norm_topk_prob=False, use_qk_norm=False, attention_bias=False,
        rope_parameters=dict(PLAIN_ROPE, partial_rotary_factor=0.25))),
    "glm4_moe_whole": ("glm4_moe", dict(
        GLM, head_dim=12, n_shared_experts=1, num_experts_per_tok=1, first_k_dense_replace=0, n_group=1, topk_group=1,
        routed_scaling_factor=1.0, norm_topk_prob=True, use_qk_norm=True, attention_bias=True,
        tie_word_embeddings=True, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10000.0,
                                                       partial_rotary_factor=1.0))),
    "granitemoe_untied": ("granitemoe", dict(
        intermediate_size=16, num_local_experts=5, num_experts_per_tok=3, attention_bias=True,
        tie_word_embeddings=False, embedding_multiplier=3.0, residual_multiplier=0.4, logits_scaling=0.5,
        attention_multiplier=0.2)),
    "switch_untied": ("switch_transformers", dict(
        SWITCH, d_kv=9, num_heads=3, num_layers=3, num_decoder_layers=5, num_sparse_encoder_layers=3,
        num_sparse_decoder_layers=2, expert_capacity=2, relative_attention_num_buckets=12,
        relative_attention_max_distance=25, tie_word_embeddings=False, decoder_start_token_id=0,
        layer_norm_epsilon=1e-5)),
    "switch_steps": ("switch_transformers", dict(
        SWITCH, d_kv=8, num_heads=4, num_layers=6, num_decoder_layers=4, num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=4, expert_capacity=64, tie_word_embeddings=True, decoder_start_token_id=3)),
}


def make_model(kind: str, options: dict):
    if kind == "switch_transformers":
        return SwitchTransformersForConditionalGeneration(AutoConfig.for_model(kind, **options)).eval()
    config = AutoConfig.for_model(kind, **COMMON | options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model.eval()


def fill(model, seed: int) -> None:
    """Random weights of a size that keeps activations and logits of the order of 1, stored exactly as bf16 would."""
    random = torch.Generator().manual_seed(seed)
    kind = model.config.model_type
    inputs_first = kind in ("gpt_oss", "llama4_text")
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *buffers]:
            numbers = torch.randn(weight.shape, generator=random)
            if weight.dim() == 1 and "norm" in name and not name.endswith("bias"):
                numbers = 1 + 0.2 * numbers
            elif weight.dim() == 1 or name.endswith("bias"):
                numbers *= 0.3
            elif "embed_tokens" not in name and name != "shared.weight" and "relative_attention" not in name:
                fused = weight.dim() == 3 and inputs_first
                numbers *= 1.5 / math.sqrt(weight.shape[-2 if fused else -1])
                if kind == "switch_transformers" and ".q." in name:
                    numbers *= model.config.d_kv ** -0.5
            weight.copy_(numbers.bfloat16().float())
        if kind == "switch_transformers":  # published checkpoints have one table
            model.encoder.embed_tokens.weight.copy_(model.shared.weight)
            model.decoder.embed_tokens.weight.copy_(model.shared.weight)


@torch.no_grad()
def continuation(model, ids: list[int]) -> tuple[torch.Tensor, list[int], float]:
    """Logits after the prompt, the greedy continuation, and the smallest lead of a greedy choice."""
    prompt = torch.tensor([ids])
    encoded, past, start = None, None, prompt
    if model.config.model_type == "switch_transformers":
        encoded = model.get_encoder()(input_ids=prompt)
        start = torch.tensor([[model.config.decoder_start_token_id]])
    first, tokens, lead, new = None, [], math.inf, start
    for _ in range(GENERATED):
        if encoded is None:  # the whole sequence anew: no cache
            logits = model(input_ids=new, use_cache=False).logits[0, -1]
        else:  # one token a call, so that the capacity never binds in the decoder
            out = model(encoder_outputs=encoded, decoder_input_ids=new[:, -1:], past_key_values=past, use_cache=True)
            past, logits = out.past_key_values, out.logits[0, -1]
        first = logits if first is None else first
        best = logits.topk(2).values
        lead = min(lead, float(best[0] - best[1]))
        tokens.append(int(logits.argmax()))
        new = torch.cat([new, torch.tensor([tokens[-1:]])], 1)
    return first, tokens, lead


def use_published_keys(config: dict) -> dict:
    rope = config.pop("rope_parameters")
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            config[key] = rope.pop(key)
    kind = rope.pop("rope_type")
    return config | {"rope_scaling": None if kind == "default" else {"type": kind} | rope,
                     "torch_dtype": config.pop("dtype")}


def nest(folder: pathlib.Path, config: dict) -> dict:
    tensors = {f"language_model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["vision_model.patch.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "text_config": config,
            "vision_config": {"hidden_size": 8}, "tie_word_embeddings": config["tie_word_embeddings"]}


def make(name: str, seed: int) -> None:
    kind, options = CASES[name]
    model = make_model(kind, options)
    fill(model, seed)
    exact = copy.deepcopy(model).double()
    random = torch.Generator().manual_seed(seed)
    prompts, tensors, noise = [], {}, 0.0
    for i, length in enumerate(PROMPT_LENGTHS):
        ids = torch.randint(0, model.config.vocab_size, (length,), generator=random).tolist()
        logits, greedy, lead = continuation(model, ids)
        noise = max(noise, float((continuation(exact, ids)[0] - logits.double()).abs().max()))
        prompts.append({"ids": ids, "greedy": greedy, "greedy_min_margin": lead})
        tensors[f"prompt{i}.logits"] = logits.contiguous()

    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.bfloat16().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    if kind == "switch_transformers":
        config["n_positions"] = 256
    if name in PUBLISHED_KEYS:
        config = use_published_keys(config)
    if name in NESTED:
        config = nest(folder, config)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "golden.json").write_text(json.dumps({"fp32_noise": noise, "prompts": prompts}) + "\n")
    save_file(tensors, folder / "golden.safetensors")
    print(f"{name}: logits ± {float(tensors['prompt0.logits'].std()):.2f}, noise {noise:.1e}, "
          f"smallest lead {min(prompt['greedy_min_margin'] for prompt in prompts):.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, case in enumerate(CASES):
        if len(sys.argv) < 2 or case in sys.argv[1:]:
            make(case, 1000 + number)
