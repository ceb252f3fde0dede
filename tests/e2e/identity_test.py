"""The same bits on every topology: logits and tokens of a mixed set of requests are equal for one process and many, any
placement, chunk of prefill, number of threads and company in the batch (docs/architecture.md, invariant 1)."""

import concurrent.futures
import dataclasses
import json
import pathlib
import random
import struct
import tempfile
import typing

import serving

NEW_TOKENS = 16
LAYERS = 4
# One of each kind of attention, gate and expert that rows are exchanged for.
FAMILIES = ("deepseek_v3", "gpt_oss", "llama4_text", "switch_base", "qwen2_moe", "granitemoe", "olmoe", "glm4_moe")
SAMPLED = dict(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, seed=7, repetition_penalty=1.2, presence_penalty=0.3,
               frequency_penalty=0.2)


def bits(values: typing.Iterable[float]) -> bytes:
    values = list(values)
    return struct.pack(f"<{len(values)}f", *values)


class Questions:
    """What a model is asked: prompts with lengths on both sides of a page of the KV cache, and company."""

    def __init__(self, vocabulary: int = 256, logits: str = "ALL", longest: int = 100):
        rng = random.Random(11)
        def prompts(*lengths: int) -> list[list[int]]:
            return [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]
        self.prompts = prompts(1, 2, 5, 17, 40, longest)
        self.company = prompts(3, 64, 9)
        self.logits = logits
        self.logit_bytes = [4 * vocabulary * (len(prompt) if logits == "ALL" else 1) for prompt in self.prompts]

    @classmethod
    def of(cls, folder: pathlib.Path) -> "Questions":
        config = json.loads((folder / "config.json").read_text())
        return cls(config["vocab_size"], "LAST" if config.get("is_encoder_decoder") else "ALL", longest=70)


@dataclasses.dataclass
class Answers:
    """What a topology says to all requests; every field must be equal on all."""
    greedy: list[list[int]]    # of each prompt
    sampled: list[list[int]]
    batched: list[list[int]]   # sampled, all prompts in one call: the index in the call counts
    logits: list[bytes]        # (positions, vocabulary) of each prompt
    logprobs: list[bytes]      # of generated tokens and of the largest

    def differences(self, other: "Answers") -> list[str]:
        return [f"{field.name} of prompt {i}" for field in dataclasses.fields(self)
                for i, (a, b) in enumerate(zip(getattr(self, field.name), getattr(other, field.name), strict=True))
                if a != b]


def ask_alone(server: serving.Server, questions: Questions) -> Answers:
    """Every request when there is no other."""
    prompts = questions.prompts
    greedy = [server.generate([prompt], NEW_TOKENS, logprobs=3)[0] for prompt in prompts]
    return Answers(
        greedy=[result.token_ids for result in greedy],
        sampled=[server.generate([prompt], NEW_TOKENS, sampling=SAMPLED)[0].token_ids for prompt in prompts],
        batched=[result.token_ids for result in server.generate(prompts, NEW_TOKENS, sampling=SAMPLED)],
        logits=[bits(server.score([prompt], questions.logits)[0].logits) for prompt in prompts],
        logprobs=[logprob_bits(result) for result in greedy])


def ask_together(server: serving.Server, questions: Questions) -> Answers:
    """All requests at once, beside some that are not looked at."""
    prompts, company = questions.prompts, questions.company
    with concurrent.futures.ThreadPoolExecutor(4 * len(prompts)) as pool:
        beside = pool.submit(server.generate, company, 3 * NEW_TOKENS, sampling=dict(temperature=2.0, seed=1))
        batched = pool.submit(server.generate, prompts, NEW_TOKENS, sampling=SAMPLED)
        greedy = [pool.submit(server.generate, [prompt], NEW_TOKENS, logprobs=3) for prompt in prompts]
        sampled = [pool.submit(server.generate, [prompt], NEW_TOKENS, sampling=SAMPLED) for prompt in prompts]
        scores = pool.submit(server.score, prompts + company, questions.logits)
        beside.result()
        return Answers(
            greedy=[future.result()[0].token_ids for future in greedy],
            sampled=[future.result()[0].token_ids for future in sampled],
            batched=[result.token_ids for result in batched.result()],
            logits=[bits(score.logits) for score in scores.result()[:len(prompts)]],
            logprobs=[logprob_bits(future.result()[0]) for future in greedy])


def logprob_bits(result: serving.Continuation) -> bytes:
    return bits(value for entry in result.logprobs for value in (entry.logprob, *entry.top_logprobs))


def uneven_placement() -> dict:
    """8 experts on 3 workers: replicas, an order of its own in each layer, and a worker that hosts none of layer 1."""
    slots = [[[7, 0, 3], [1, 2, 3, 4], [5, 6, 0]], [[0, 1, 2, 3, 4], [], [7, 6, 5]],
             [[6], [5, 4, 3, 2, 1, 0], [7, 6]], [[0, 1, 2], [3, 4, 5], [6, 7, 2]]]
    return {"schema": 1, "num_experts": 8, "workers": 3,
            "layers": [{"layer": layer, "slots": slots[layer]} for layer in range(LAYERS)]}


class IdentityTest(serving.ServingTest):

    def answers(self, ask, ranks: int, *flags, model: pathlib.Path = serving.MOE,
                questions: Questions = Questions()) -> Answers:
        with serving.running(model, ranks, *flags) as server:
            return ask(server, questions)

    def assert_same(self, expected: Answers, given: Answers) -> None:
        self.assertEqual(given.differences(expected), [])

    def assert_complete(self, answers: Answers, questions: Questions) -> None:
        """The answers to compare with have something to show."""
        self.assertTrue(all(len(tokens) == NEW_TOKENS for tokens in answers.greedy + answers.sampled))
        self.assertEqual([len(logits) for logits in answers.logits], questions.logit_bytes)
        self.assertNotEqual(answers.greedy, answers.sampled)

    def test_every_family_gives_the_same_bits_over_mpi(self):
        for family in FAMILIES:
            folder = serving.GOLDENS / family
            with self.subTest(family):
                questions = Questions.of(folder)
                asked = dict(model=folder, questions=questions)
                reference = self.answers(ask_alone, 0, "--threads", 1, **asked)
                self.assert_complete(reference, questions)
                self.assert_same(reference, self.answers(ask_together, 3, "--placement", "round_robin",
                                                         "--redundant-experts", 2, "--prefill-chunk", 7,
                                                         "--micro-batches", 2, **asked))

    def test_every_topology_gives_the_same_bits(self):
        reference = self.answers(ask_alone, 0, "--threads", 1)
        self.assert_complete(reference, Questions())
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "placement.json")
            file.write_text(json.dumps(uneven_placement()))
            loads = pathlib.Path(folder, "loads.json")
            loads.write_text(json.dumps({"layers": [[90, 5, 5, 5, 5, 5, 5, 40]] * len(uneven_placement()["layers"])}))
            for ranks, *flags in (
                    (0, "--threads", 2, "--prefill-chunk", 7),
                    (0, "--threads", 2, "--prefill-chunk", 1, "--max-step-tokens", 5),
                    (2, "--threads", 2),
                    (3, "--threads", 1, "--placement", "round_robin", "--prefill-chunk", 7),
                    (4, "--placement", file, "--prefill-chunk", 33),
                    (8, "--threads", 1),
                    (8, "--threads", 2, "--placement", "round_robin", "--redundant-experts", 4, "--prefill-chunk", 7),
                    (8, "--redundant-experts", 4, "--max-step-tokens", 50),
                    (8, "--placement", "auto", "--loads", loads, "--redundant-experts", 5),
                    (0, "--micro-batches", 2),
                    (3, "--micro-batches", 1, "--prefill-chunk", 33),
                    (3, "--micro-batches", 2, "--threads", 2),
                    (4, "--micro-batches", 4, "--redundant-experts", 4, "--prefill-chunk", 7),
                    (2, "--transport", "grpc", "--threads", 1),
                    (3, "--transport", "grpc_streams", "--threads", 1),
                    (4, "--transport", "grpc", "--placement", "round_robin", "--micro-batches", 3)):
                with self.subTest(ranks=ranks, flags=flags):
                    self.assert_same(reference, self.answers(ask_together, ranks, *flags))

    def test_requests_do_not_depend_on_each_other_over_mpi(self):
        with serving.running(serving.MOE, 3, "--prefill-chunk", 1) as server:
            self.assert_same(ask_alone(server, Questions()), ask_together(server, Questions()))

    def test_each_weight_type_agrees_with_itself(self):
        results = {}
        for weight_type in ("f32", "bf16", "f16"):
            with self.subTest(weight_type=weight_type):
                flags = ("--weight-type", weight_type)
                results[weight_type] = self.answers(ask_together, 0, *flags, "--threads", 1)
                self.assert_same(results[weight_type],
                                 self.answers(ask_together, 3, *flags, "--placement", "round_robin"))
        # The checkpoint holds bf16, which f32 represents exactly and f16 does not.
        self.assertEqual(results["f32"].logits, results["bf16"].logits)
        self.assertNotEqual(results["f16"].logits, results["bf16"].logits)

    def test_rows_exchanged_as_bf16_are_rounded_in_process_too(self):
        flags = ("--exchange-type", "bf16")
        embedded = self.answers(ask_together, 0, *flags)
        self.assert_same(embedded, self.answers(ask_together, 3, *flags))
        self.assertNotEqual(embedded.logits, self.answers(ask_together, 0).logits)


if __name__ == "__main__":
    serving.main()
