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
VOCABULARY = 256
LAYERS = 4
_rng = random.Random(11)
PROMPTS = [[_rng.randrange(VOCABULARY) for _ in range(length)] for length in (1, 2, 5, 17, 40, 100)]
COMPANY = [[_rng.randrange(VOCABULARY) for _ in range(length)] for length in (3, 64, 9)]
GREEDY = {}
SAMPLED = dict(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, seed=7, repetition_penalty=1.2, presence_penalty=0.3,
               frequency_penalty=0.2)


def bits(values: typing.Iterable[float]) -> bytes:
    values = list(values)
    return struct.pack(f"<{len(values)}f", *values)


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


def ask_alone(server: serving.Server) -> Answers:
    """Every request when there is no other."""
    greedy = [server.generate([prompt], NEW_TOKENS, logprobs=3)[0] for prompt in PROMPTS]
    return Answers(
        greedy=[result.token_ids for result in greedy],
        sampled=[server.generate([prompt], NEW_TOKENS, sampling=SAMPLED)[0].token_ids for prompt in PROMPTS],
        batched=[result.token_ids for result in server.generate(PROMPTS, NEW_TOKENS, sampling=SAMPLED)],
        logits=[bits(server.score([prompt], "ALL")[0].logits) for prompt in PROMPTS],
        logprobs=[logprob_bits(result) for result in greedy])


def ask_together(server: serving.Server) -> Answers:
    """All requests at once, beside some that are not looked at."""
    with concurrent.futures.ThreadPoolExecutor(4 * len(PROMPTS)) as pool:
        company = pool.submit(server.generate, COMPANY, 3 * NEW_TOKENS, sampling=dict(temperature=2.0, seed=1))
        batched = pool.submit(server.generate, PROMPTS, NEW_TOKENS, sampling=SAMPLED)
        greedy = [pool.submit(server.generate, [prompt], NEW_TOKENS, logprobs=3) for prompt in PROMPTS]
        sampled = [pool.submit(server.generate, [prompt], NEW_TOKENS, sampling=SAMPLED) for prompt in PROMPTS]
        scores = pool.submit(server.score, PROMPTS + COMPANY, "ALL")
        company.result()
        return Answers(
            greedy=[future.result()[0].token_ids for future in greedy],
            sampled=[future.result()[0].token_ids for future in sampled],
            batched=[result.token_ids for result in batched.result()],
            logits=[bits(score.logits) for score in scores.result()[:len(PROMPTS)]],
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

    def answers(self, ask, ranks: int, *flags) -> Answers:
        with serving.running(serving.MOE, ranks, *flags) as server:
            return ask(server)

    def assert_same(self, expected: Answers, given: Answers) -> None:
        self.assertEqual(given.differences(expected), [])

    def test_every_topology_gives_the_same_bits(self):
        reference = self.answers(ask_alone, 0, "--threads", 1)
        self.assertTrue(all(len(tokens) == NEW_TOKENS for tokens in reference.greedy + reference.sampled))
        self.assertEqual([len(logits) for logits in reference.logits], [4 * VOCABULARY * len(p) for p in PROMPTS])
        self.assertNotEqual(reference.greedy, reference.sampled)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "placement.json")
            file.write_text(json.dumps(uneven_placement()))
            for ranks, *flags in (
                    (0, "--threads", 2, "--prefill-chunk", 7),
                    (0, "--threads", 2, "--prefill-chunk", 1, "--max-step-tokens", 5),
                    (2, "--threads", 2),
                    (3, "--threads", 1, "--placement", "round_robin", "--prefill-chunk", 7),
                    (4, "--placement", file, "--prefill-chunk", 33),
                    (8, "--threads", 1),
                    (8, "--threads", 2, "--placement", "round_robin", "--redundant-experts", 4, "--prefill-chunk", 7),
                    (8, "--redundant-experts", 4, "--max-step-tokens", 50)):
                with self.subTest(ranks=ranks, flags=flags):
                    self.assert_same(reference, self.answers(ask_together, ranks, *flags))

    def test_requests_do_not_depend_on_each_other_over_mpi(self):
        with serving.running(serving.MOE, 3, "--prefill-chunk", 1) as server:
            self.assert_same(ask_alone(server), ask_together(server))

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
