"""Options of the families that no golden checkpoint has, against a plain decoder in double precision: each config below
is served and its logits at every position compared."""

import pathlib
import random
import tempfile

import decoder_reference
import serving

# The largest error of an fp32 sum of a few hundred terms of size about 1, over two layers: some hundred units of 2^-24.
# Each option here moves the logits by 0.01 or more (test_every_option_matters).
TOLERANCE = 2e-4
VISIBLE = 1e-2

BASE = {"hidden_act": "silu", "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 37, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "torch_dtype": "float32", "eos_token_id": None, "tie_word_embeddings": False}
LLAMA = BASE | {"model_type": "llama"}
MISTRAL = BASE | {"model_type": "mistral"}
MIXTRAL = BASE | {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}

CASES = {
    "mixtral_window": MIXTRAL | {"sliding_window": 5},
    "mixtral_tied": MIXTRAL | {"tie_word_embeddings": True},
    "mixtral_every_expert": MIXTRAL | {"num_experts_per_tok": 5},
    "mixtral_one_expert_a_token": MIXTRAL | {"num_experts_per_tok": 1},
    "mixtral_theta": MIXTRAL | {"rope_theta": 100.0},
    "mixtral_rope_parameters": MIXTRAL | {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "mixtral_head_dim": MIXTRAL | {"head_dim": 10},
    "mistral_window_past_a_page": MISTRAL | {"sliding_window": 33},
    "mistral_no_window": MISTRAL | {"sliding_window": None},
    "llama_attention_bias": LLAMA | {"attention_bias": True},
    "llama_mlp_bias": LLAMA | {"mlp_bias": True},
    "llama_linear": LLAMA | {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "llama_llama3_parameters": LLAMA | {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}},
    "llama_llama3_no_middle": LLAMA | {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}, "rope_theta": 500.0},
    "llama_full_heads": {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"},
    "llama_eps": LLAMA | {"rms_norm_eps": 1e-2},
}
PROMPT_LENGTHS = (1, 40)  # within a page of the KV cache, and past one


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(BASE["vocab_size"]) for _ in range(length)] for length in PROMPT_LENGTHS]


def largest_difference(a, b) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


class OptionsTest(serving.ServingTest):

    def test_logits_equal_the_reference(self):
        for name, config in CASES.items():
            with self.subTest(name), tempfile.TemporaryDirectory(prefix="moe-options-") as folder:
                decoder = decoder_reference.Decoder(config, seed=11)
                want = [decoder.logits(prompt) for prompt in prompts()]
                decoder.save(pathlib.Path(folder))
                with serving.running(folder) as server:
                    scores = server.score(prompts(), "ALL")
                for rows, score in zip(want, scores, strict=True):
                    flat = [value for row in rows for value in row]
                    self.assertLessEqual(largest_difference(flat, list(score.logits)), TOLERANCE)

    def test_every_option_matters(self):
        """A case whose option could be ignored would show nothing."""
        plain = {"mixtral": MIXTRAL, "mistral": MISTRAL, "llama": LLAMA}
        for name, config in CASES.items():
            base = plain[config["model_type"]]
            sized = ("head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings")  # other tensors, other weights
            if name in ("llama_full_heads", "mistral_no_window") or any(config.get(k) != base.get(k) for k in sized):
                continue
            with self.subTest(name):
                prompt = prompts()[1]
                with_option = decoder_reference.Decoder(config, seed=11).logits(prompt)[-1]
                without = decoder_reference.Decoder(base, seed=11).logits(prompt)[-1]
                self.assertGreater(largest_difference(with_option, without), VISIBLE)


if __name__ == "__main__":
    serving.main()
