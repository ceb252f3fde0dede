"""What an independent implementation says, reproduced through the gRPC API: golden checkpoints (tests/goldens/README.md
derives the tolerances) and the bundled models with their held-out loss and their tasks."""

import collections
import json
import math
import pathlib
import re
import struct

import safetensors_file
import serving

BUNDLED = ("eight-languages-moe", "eight-languages-dense", "eight-languages-collapsed")
WINDOW = 256       # bytes; the first of a window is not scored
NLL_TOLERANCE = 1e-4
ROUTER_WEIGHT_TOLERANCE = 1e-5
NEWLINE = 10
MAX_ANSWER_TOKENS = 72  # the longest answer of the tasks has 69 bytes
TASKS = 64
WINDOWS_A_CALL = 32


def largest_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def argmax(values: list[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))  # ties to the lower id


def rows_of(flat, columns: int) -> list[list[float]]:
    flat = list(flat)
    return [flat[i:i + columns] for i in range(0, len(flat), columns)]


class GoldenCase:
    """A folder of tests/goldens."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        golden = json.loads((folder / "golden.json").read_text())
        self.config = json.loads((folder / "config.json").read_text())
        self.prompts: list[dict] = golden["prompts"]
        self.parameters: int | None = golden.get("num_parameters")
        self.tensors = safetensors_file.Tensors(folder / "golden.safetensors")
        self.tolerance = max(8 * golden["fp32_noise"], 1e-4)
        self.router_tolerance = ROUTER_WEIGHT_TOLERANCE * max(1, self.config.get("routed_scaling_factor") or 1)

    @property
    def ids(self) -> list[list[int]]:
        return [prompt["ids"] for prompt in self.prompts]

    @property
    def has_encoder(self) -> bool:
        return self.config.get("is_encoder_decoder", False)

    def routed_layers(self) -> list[int]:
        """Those whose routing the golden has: all that are sparse, of an encoder-decoder the encoder's."""
        names = (re.fullmatch(r"prompt0\.router\.(\d+)\.ids", name) for name in self.tensors.names())
        return sorted(int(name[1]) for name in names if name)


class GoldenTest(serving.ServingTest):
    """Every case, in one process and over three ranks."""

    def check_logits(self, case: GoldenCase, server: serving.Server) -> list[bytes]:
        """The logits are near the golden's; returned as bits."""
        vocabulary = server.model().vocab_size
        scores = server.score(case.ids, "LAST" if case.has_encoder else "ALL")
        for i, (prompt, score) in enumerate(zip(case.prompts, scores, strict=True)):
            positions = rows_of(score.logits, vocabulary)
            self.assertLessEqual(largest_difference(positions[-1], case.tensors.values(f"prompt{i}.logits")),
                                 case.tolerance, f"prompt {i}")
            greedy = [argmax(row) for row in positions]
            self.assertEqual(greedy[-1:], prompt["greedy"][:1], f"prompt {i}")
            if "argmax" in prompt:
                self.assertEqual(greedy, prompt["argmax"], f"prompt {i}")
        if "prompt0.all_logits" in case.tensors.names() and not case.has_encoder:
            self.assertLessEqual(largest_difference(list(scores[0].logits), case.tensors.values("prompt0.all_logits")),
                                 case.tolerance)
        return [struct.pack(f"<{len(score.logits)}f", *score.logits) for score in scores]

    def check_greedy(self, case: GoldenCase, server: serving.Server) -> None:
        """The continuations, and what Usage counts of them."""
        results = server.generate(case.ids, len(case.prompts[0]["greedy"]), return_routing=True)
        model = server.model()
        for i, (prompt, result) in enumerate(zip(case.prompts, results, strict=True)):
            self.assertEqual(result.token_ids, prompt["greedy"], f"prompt {i}")
            usage = result.finish.usage
            self.assertEqual((usage.prompt_tokens, usage.generated_tokens, usage.active_parameters_per_token),
                             (len(prompt["ids"]), len(prompt["greedy"]), model.parameters.active))
            if model.num_experts == 0:
                self.assertEqual(usage.touched_parameters, model.parameters.total)
            computed = [(layer.layer, expert) for layer in result.routing
                        for expert, weight in zip(layer.expert_ids, layer.weights, strict=True) if weight != 0]
            self.assertEqual((usage.expert_rows, usage.unique_experts), (len(computed), len(set(computed))))
            # A layer's routing may come in several events; together they have every position once.
            pairs = collections.Counter()
            for layer in result.routing:
                pairs[layer.layer] += len(layer.expert_ids) // layer.experts_per_token
            decoded = len(prompt["greedy"]) + (0 if case.has_encoder else len(prompt["ids"]) - 1)
            encoder_layers = case.config["num_layers"] if case.has_encoder else 0
            for layer, positions in pairs.items():
                self.assertEqual(positions, len(prompt["ids"]) if layer < encoder_layers else decoded,
                                 f"prompt {i}, layer {layer}")

    def check_routing(self, case: GoldenCase, server: serving.Server) -> None:
        """Experts and weights of prompt 0 on every layer; a token that an encoder drops has weight 0."""
        mode = "LAST" if case.has_encoder else "NONE"
        (score,) = server.score([case.prompts[0]["ids"]], mode, return_routing=True)
        layers = {layer.layer: layer for layer in score.routing}
        self.assertEqual([layer.layer for layer in score.routing], sorted(layers))
        expected = case.routed_layers()
        if case.has_encoder:
            decoder = [layer + case.config["num_layers"] for layer in expected]  # the golden's two stacks are alike
            self.assertEqual([len(layers[layer].expert_ids) for layer in decoder], [1] * len(decoder))
            self.assertEqual(sorted(layers), expected + decoder)
        else:
            self.assertEqual(sorted(layers), expected)
        for index in expected:
            layer = layers[index]
            want = self.routes(case.tensors.rows(f"prompt0.router.{index}.ids"),
                               case.tensors.rows(f"prompt0.router.{index}.weights"))
            got = self.routes(rows_of(layer.expert_ids, layer.experts_per_token),
                              rows_of(layer.weights, layer.experts_per_token))
            self.assertEqual([token.keys() for token in got], [token.keys() for token in want], f"layer {index}")
            for token, (a, b) in enumerate(zip(want, got, strict=True)):
                worst = max(abs(a[expert] - b[expert]) for expert in a)
                self.assertLessEqual(worst, case.router_tolerance, f"layer {index}, token {token}")
            dropped = case.prompts[0].get("dropped_encoder_tokens", {}).get(str(index), [])
            self.assertEqual([token for token, weights in enumerate(got) if 0 in weights.values()], dropped)

    @staticmethod
    def routes(ids: list[list[int]], weights: list[list[float]]) -> list[dict[int, float]]:
        return [dict(zip(row, values, strict=True)) for row, values in zip(ids, weights, strict=True)]

    def test_goldens(self):
        folders = sorted(path.parent for path in serving.GOLDENS.glob("*/golden.json"))
        self.assertGreaterEqual(len(folders), 19)
        for folder in folders:
            case = GoldenCase(folder)
            bits = []
            for ranks in (0, 3):
                with self.subTest(case=folder.name, ranks=ranks), serving.running(folder, ranks) as server:
                    self.assertEqual(server.model().parameters.total, case.parameters)
                    bits.append(self.check_logits(case, server))
                    self.check_greedy(case, server)
                    self.check_routing(case, server)
            with self.subTest(case=folder.name, same_bits=True):
                self.assertEqual(*bits)

    def test_option_goldens(self):
        folders = sorted(path.parent for path in serving.OPTION_GOLDENS.glob("*/golden.json"))
        self.assertGreaterEqual(len(folders), 24)
        for folder in folders:
            case = GoldenCase(folder)
            with self.subTest(case=folder.name), serving.running(folder) as server:
                self.check_logits(case, server)
                self.check_greedy(case, server)


class BundledModelTest(serving.ServingTest):

    def check_prompts(self, golden: dict, server: serving.Server) -> None:
        """Greedy tokens of the eight prompts, and the logits after the first."""
        prompts = golden["prompts"]
        results = server.generate([prompt["prompt_ids"] for prompt in prompts], len(prompts[0]["greedy_ids"]))
        for prompt, result in zip(prompts, results):
            self.assertEqual(result.token_ids, prompt["greedy_ids"], prompt["prompt"])
        last = golden["last_logits"]
        (score,) = server.score([last["prompt_ids"]], "LAST")
        # As for the goldens, with the distance to the float64 run for the noise.
        tolerance = max(8 * last["max_abs_difference_to_float64"], 1e-4)
        self.assertLessEqual(largest_difference(list(score.logits), last["logits"]), tolerance)

    def held_out_loss(self, server: serving.Server) -> float:
        """Mean over all scored bytes of held-out.txt, in windows that do not overlap."""
        text = (serving.MODELS / "held-out.txt").read_bytes()
        windows = [list(text[i:i + WINDOW]) for i in range(0, len(text), WINDOW)]
        logprobs = []
        for i in range(0, len(windows), WINDOWS_A_CALL):
            for score in server.score(windows[i:i + WINDOWS_A_CALL]):
                logprobs.extend(score.token_logprobs)
                self.assertAlmostEqual(score.mean_nll, -math.fsum(score.token_logprobs) / len(score.token_logprobs), 5)
        self.assertEqual(len(logprobs), len(text) - len(windows))
        return -math.fsum(logprobs) / len(logprobs)

    def test_bundled_models(self):
        for name, ranks in zip(BUNDLED, (3, 0, 0)):
            with self.subTest(model=name):
                golden = json.loads((serving.MODELS / name / "golden.json").read_text())
                with serving.running(serving.MODELS / name, ranks) as server:
                    self.check_prompts(golden, server)
                    self.assertAlmostEqual(self.held_out_loss(server), golden["val_nll_256"], delta=NLL_TOLERANCE)

    def test_tasks_are_answered(self):
        golden = json.loads((serving.MOE / "golden.json").read_text())
        self.assertEqual(set(golden["accuracy"].values()), {1.0})  # of the whole file, so of any part of it
        tasks = [json.loads(line) for line in (serving.MODELS / "tasks.jsonl").read_text().splitlines()]
        chosen = tasks[::len(tasks) // TASKS][:TASKS]
        self.assertEqual({task["language"] for task in chosen}, set(golden["accuracy"]))
        with serving.running(serving.MOE, 3) as server:
            results = server.generate([list(task["prompt"].encode()) for task in chosen], MAX_ANSWER_TOKENS,
                                      stop_token_ids=[NEWLINE])
        for task, result in zip(chosen, results, strict=True):
            self.assertEqual((result.text(), result.reason), (task["answer"], "STOP"), task["prompt"])


if __name__ == "__main__":
    serving.main()
