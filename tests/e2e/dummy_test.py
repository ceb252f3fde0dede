"""--load-format dummy: a config.json alone makes a model whose weights are the same on every topology."""

import json
import math
import pathlib
import re
import struct
import tempfile

import serving

ADDRESSES = ("--listen", "127.0.0.1:0", "--metrics-port", 0)
DUMMY = ("--load-format", "dummy")
FAMILIES = ("deepseek_v3", "gpt_oss", "switch_base")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], list(range(60))]
NEW_TOKENS = 12


class DummyTest(serving.ServingTest):

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moe-dummy-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def config_only(self, config: dict) -> pathlib.Path:
        (self.folder / "config.json").write_text(json.dumps(config))
        return self.folder

    def golden_config(self, name: str, **values) -> dict:
        return json.loads((serving.GOLDENS / name / "config.json").read_text()) | values

    def answers(self, model: pathlib.Path, ranks: int, *flags) -> tuple:
        """Tokens, and logits as bits; every logit is a number and not all are alike."""
        with serving.running(model, ranks, *DUMMY, *flags) as server:
            tokens = [result.token_ids for result in server.generate(PROMPTS, NEW_TOKENS)]
            logits = [list(score.logits) for score in server.score(PROMPTS, "LAST")]
            weight_type = server.model().weight_type
        for row in logits:
            self.assertTrue(all(map(math.isfinite, row)))
            self.assertGreater(max(row) - min(row), 1e-3)
        return tokens, [struct.pack(f"<{len(row)}f", *row) for row in logits], weight_type

    def test_tokens_do_not_depend_on_the_topology_or_the_number_of_threads(self):
        for family in FAMILIES:
            with self.subTest(family):
                model = self.config_only(self.golden_config(family))
                alone = self.answers(model, 0, "--threads", 1)
                self.assertEqual(self.answers(model, 3, "--placement", "round_robin", "--redundant-experts", 3,
                                              "--threads", 2), alone)

    def test_weights_are_made_in_the_type_asked_for(self):
        model = self.config_only(self.golden_config("deepseek_v3"))
        by_type = {}
        for weight_type in ("f32", "bf16", "f16"):
            with self.subTest(weight_type):
                flags = ("--weight-type", weight_type)
                by_type[weight_type] = self.answers(model, 0, *flags)
                self.assertEqual(by_type[weight_type][2], weight_type)
                self.assertEqual(self.answers(model, 3, *flags), by_type[weight_type])
        logits = {name: answers[1] for name, answers in by_type.items()}
        self.assertNotEqual(logits["f32"], logits["bf16"])
        self.assertNotEqual(logits["f16"], logits["bf16"])

    def test_the_files_beside_the_configuration_are_not_read(self):
        name = "mixtral_bf16"
        made_up = self.answers(self.config_only(self.golden_config(name)), 0)
        self.assertEqual(self.answers(serving.GOLDENS / name, 0), made_up)
        with serving.running(serving.GOLDENS / name) as server:
            self.assertNotEqual([result.token_ids for result in server.generate(PROMPTS, NEW_TOKENS)], made_up[0])

    def test_the_shape_of_olmoe_is_served(self):
        """Two of its 16 layers: all would take 14 GB."""
        shape = serving.MODELS / "shapes/olmoe-1b-7b"
        model = self.config_only(json.loads((shape / "config.json").read_text()) | {"num_hidden_layers": 2})
        with serving.running(model, 0, *DUMMY) as server:
            description = server.model()
            self.assertEqual((description.architecture, description.hidden_size, description.num_experts,
                              description.experts_per_token, description.vocab_size, description.weight_type),
                             ("OlmoeForCausalLM", 2048, 64, 8, 50304, "bf16"))
            tokens = [result.token_ids for result in server.generate(PROMPTS, NEW_TOKENS)]
        self.assertEqual([len(sequence) for sequence in tokens], [NEW_TOKENS] * len(PROMPTS))
        outcome = serving.run(["--model", shape, *ADDRESSES])
        self.assertEqual(outcome.exit_code, 1, outcome.stderr)
        self.assertIn("safetensors", outcome.stderr)

    def test_without_it_a_folder_needs_weights(self):
        model = self.config_only(self.golden_config("mixtral"))
        outcome = serving.run(["--model", model, *ADDRESSES])
        self.assertEqual(outcome.exit_code, 1, outcome.stderr)
        self.assertIn("safetensors", outcome.stderr)
        self.assertEqual(len(outcome.stderr.splitlines()), 1, outcome.stderr)

    def test_a_model_larger_than_memory_is_refused_with_the_figures(self):
        layers, experts, hidden, intermediate = 61, 256, 7168, 2048  # DeepSeek-V3's
        model = self.config_only(self.golden_config(
            "deepseek_v3", num_hidden_layers=layers, n_routed_experts=experts, hidden_size=hidden,
            moe_intermediate_size=intermediate, intermediate_size=18432, n_group=8, topk_group=4,
            num_experts_per_tok=8, first_k_dense_replace=3, vocab_size=129280))
        in_experts = 2 * 3 * hidden * intermediate * experts * (layers - 3)  # bf16; the sizes are whole panels
        for ranks in (0, 3):
            with self.subTest(ranks=ranks):
                outcome = serving.run(["--model", model, *ADDRESSES, *DUMMY, "--weight-type", "bf16"], ranks)
                self.assertEqual(outcome.exit_code, 1, outcome.stderr)
                (line,) = outcome.own_lines()
                figures = re.search(r"take (\d+) bytes as bf16 here \((\d+) dense, (\d+) in experts\), "
                                    r"the machine has (\d+)", line)
                self.assertIsNotNone(figures, line)
                needed, dense, in_shards, memory = map(int, figures.groups())
                self.assertEqual(in_shards, in_experts)
                self.assertEqual(needed, dense + in_shards)
                self.assertLess(memory, needed)
                self.assertIn(str(model), line)


if __name__ == "__main__":
    serving.main()
