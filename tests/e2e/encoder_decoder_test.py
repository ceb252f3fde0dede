"""What differs for a model with an encoder (Switch): tokens go to the encoder, whole; the decoder begins with its own
start token; a score has the logits of the first step only. golden_test.py compares its figures."""

import json
import pathlib
import random
import tempfile

import grpc
import serving

SWITCH = serving.GOLDENS / "switch_base"
CONFIG = json.loads((SWITCH / "config.json").read_text())
POSITIONS = CONFIG["n_positions"]
STEP = 48  # rows of a step, and so the longest source
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(CONFIG["vocab_size"]) for _ in range(length)]


class EncoderDecoderTest(serving.ServingTest):

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(serving.running(SWITCH, 3, "--max-step-tokens", STEP))

    def test_scores_have_the_first_step_only(self):
        for mode in ("NONE", "ALL"):
            self.assert_refused(grpc.StatusCode.UNIMPLEMENTED, "return_logits", mode, "LAST",
                                call=lambda: self.server.score([[1, 2]], mode))
        (score,) = self.server.score([[1, 2, 3]], "LAST")
        self.assertEqual((len(score.logits), len(score.token_logprobs), score.mean_nll), (CONFIG["vocab_size"], 0, 0))

    def test_a_source_longer_than_a_step_is_refused(self):
        self.assertEqual(len(self.server.generate([prompt(1, STEP)], 3)[0].token_ids), 3)
        for call in (lambda: self.server.generate([prompt(1, STEP + 1)], 3),
                     lambda: self.server.generate([[1], prompt(1, STEP + 1)], 3),
                     lambda: self.server.score([prompt(1, STEP + 1)], "LAST")):
            self.assert_refused(INVALID, "token_ids", str(STEP + 1), str(STEP), "--max-step-tokens", call=call)

    def test_source_and_continuation_are_two_contexts(self):
        self.assertEqual(self.server.model().context_length, POSITIONS)
        (result,) = self.server.generate([prompt(2, STEP)], POSITIONS)
        self.assertEqual((len(result.token_ids), result.reason), (POSITIONS, "LENGTH"))
        self.assert_refused(INVALID, "max_new_tokens", str(POSITIONS + 1), str(POSITIONS),
                            call=lambda: self.server.generate([[1]], POSITIONS + 1))

    def test_sources_beyond_a_step_wait_their_turn_and_change_nothing(self):
        prompts = [prompt(seed, 3 + 5 * (seed % 9)) for seed in range(20)]  # of 3 to 43 tokens
        self.assertGreater(sum(map(len, prompts)), 8 * STEP)
        alone = [self.server.generate([p], 12)[0].token_ids for p in prompts]
        self.assertEqual([result.token_ids for result in self.server.generate(prompts, 12)], alone)
        self.server.wait_until_idle()

    def test_the_end_of_sequence_ends_it(self):
        (free,) = self.server.generate([prompt(3, 9)], 20)
        stop = free.token_ids[5]
        (result,) = self.server.generate([prompt(3, 9)], 20, stop_token_ids=[stop])
        self.assertEqual((result.token_ids, result.reason), (free.token_ids[:free.token_ids.index(stop) + 1], "STOP"))

    def test_layers_are_counted_from_the_encoders_first(self):
        sparse = [1, 3, 5, 7]  # every second block of four and four
        placed = {hosted.layer for rank in self.server.get_cluster().ranks for hosted in rank.hosted}
        self.assertEqual(sorted(placed), sparse)
        (result,) = self.server.generate([prompt(4, 6)], 3, return_routing=True)
        positions = {layer: 0 for layer in sparse}
        for routing in result.routing:
            positions[routing.layer] += len(routing.expert_ids)
        self.assertEqual(positions, {1: 6, 3: 6, 5: 3, 7: 3})


class OtherConfigurationsTest(serving.ServingTest):

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moe-switch-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "model.safetensors").symlink_to(SWITCH / "model.safetensors")

    def configure(self, **values) -> pathlib.Path:
        """The checkpoint with these keys; None removes one."""
        config = {key: value for key, value in (CONFIG | values).items() if value is not None}
        (self.folder / "config.json").write_text(json.dumps(config))
        return self.folder

    def test_without_n_positions_the_cache_is_the_context(self):
        with serving.running(self.configure(n_positions=None), 0, "--kv-tokens", 96) as server:
            self.assertEqual(server.model().context_length, 96)
            self.assertEqual(len(server.generate([prompt(5, 96)], 96)[0].token_ids), 96)
            self.assert_refused(INVALID, "max_new_tokens", "97", "96", call=lambda: server.generate([[1]], 97))
            self.assert_refused(INVALID, "token_ids", "97", "96", call=lambda: server.generate([prompt(5, 97)], 1))

    def test_generation_begins_with_the_configured_token(self):
        golden = json.loads((SWITCH / "golden.json").read_text())["prompts"][0]
        with serving.running(self.configure(decoder_start_token_id=17)) as server:
            (result,) = server.generate([golden["ids"]], 24)
            self.assertNotEqual(result.token_ids, golden["greedy"])
        outcome = serving.run(["--model", self.configure(decoder_start_token_id=None), "--listen", "127.0.0.1:0",
                               "--metrics-port", 0])
        self.assertEqual(outcome.exit_code, 1)
        self.assertIn("decoder_start_token_id", outcome.stderr)


if __name__ == "__main__":
    serving.main()
