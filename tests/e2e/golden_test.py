"""What an independent implementation says, reproduced through the gRPC API: golden checkpoints (tests/goldens/README.md
derives the tolerances) and the bundled models with their held-out loss and their tasks."""

import json
import math
import pathlib

import safetensors_file
import serving

CASES = ("mixtral", "mixtral_bf16", "llama", "llama3_rope", "mistral")
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

    def __init__(self, name: str):
        self.folder: pathlib.Path = serving.GOLDENS / name
        golden = json.loads((self.folder / "golden.json").read_text())
        self.prompts: list[dict] = golden["prompts"]
        self.tensors = safetensors_file.Tensors(self.folder / "golden.safetensors")
        self.tolerance = max(8 * golden["fp32_noise"], 1e-4)


class GoldenTest(serving.ServingTest):

    def check_logits(self, case: GoldenCase, server: serving.Server) -> None:
        vocabulary = server.model().vocab_size
        scores = server.score([prompt["ids"] for prompt in case.prompts], "ALL")
        for i, (prompt, score) in enumerate(zip(case.prompts, scores)):
            positions = rows_of(score.logits, vocabulary)
            self.assertLessEqual(largest_difference(positions[-1], case.tensors.values(f"prompt{i}.logits")),
                                 case.tolerance, f"prompt {i}")
            self.assertEqual([argmax(row) for row in positions], prompt["argmax"], f"prompt {i}")
        self.assertLessEqual(largest_difference(list(scores[0].logits), case.tensors.values("prompt0.all_logits")),
                             case.tolerance)

    def check_greedy(self, case: GoldenCase, server: serving.Server) -> None:
        results = server.generate([prompt["ids"] for prompt in case.prompts], len(case.prompts[0]["greedy"]))
        for i, (prompt, result) in enumerate(zip(case.prompts, results)):
            self.assertEqual(result.token_ids, prompt["greedy"], f"prompt {i}")

    def check_routing(self, case: GoldenCase, server: serving.Server) -> int:
        """Experts and weights of prompt 0; the number of layers looked at."""
        (score,) = server.score([case.prompts[0]["ids"]], "NONE", return_routing=True)
        for layer in score.routing:
            name = f"prompt0.router.{layer.layer}"
            golden = [dict(zip(ids, weights)) for ids, weights in
                      zip(case.tensors.rows(f"{name}.ids"), case.tensors.rows(f"{name}.weights"), strict=True)]
            given = [dict(zip(ids, weights)) for ids, weights in
                     zip(rows_of(layer.expert_ids, layer.experts_per_token),
                         rows_of(layer.weights, layer.experts_per_token), strict=True)]
            for token, (want, got) in enumerate(zip(golden, given, strict=True)):
                self.assertEqual(want.keys(), got.keys(), f"layer {layer.layer}, token {token}")
                worst = max(abs(want[expert] - got[expert]) for expert in want)
                self.assertLessEqual(worst, ROUTER_WEIGHT_TOLERANCE, f"layer {layer.layer}, token {token}")
        return len(score.routing)

    def test_goldens(self):
        for name in CASES:
            for ranks in (0, 4):
                with self.subTest(case=name, ranks=ranks):
                    case = GoldenCase(name)
                    with serving.running(case.folder, ranks) as server:
                        self.check_logits(case, server)
                        self.check_greedy(case, server)
                        model = server.model()
                        self.assertEqual(self.check_routing(case, server), model.num_layers if model.num_experts else 0)


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
