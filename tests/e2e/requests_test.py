"""Requests at the edge of what is allowed, and beyond: the right status at once, naming field and value; nobody else is
disturbed, and a client that goes away leaves nothing behind."""

import contextlib
import signal
import subprocess
import sys

import grpc
import serving
from load import LONG_PROMPT, SLOW, TOKENS, Load

VOCABULARY, CONTEXT = 256, 512
LEFT_BEHIND = 400  # sequences of a client that goes away: nearly 200,000 steps, which take far longer than it stays
INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class InvalidRequestTest(serving.ServingTest):

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(serving.running(serving.MOE))

    def tearDown(self):
        self.assertEqual(len(self.server.generate([[1, 2, 3]], 5)[0].token_ids), 5)

    def test_generate(self):
        generated = self.server.metric("moe_generated_tokens_total")
        rejected = self.server.metric("moe_requests_total", outcome="rejected")
        limits = self.server.model().limits
        most = limits.max_sequences_per_request
        refused = 0
        for prompts, tokens, sampling, fields, *needles in (
                ([[1, VOCABULARY]], 4, {}, {}, "token_ids", VOCABULARY),
                ([[1], [2, 2**32 - 1]], 4, {}, {}, "sequences[1]", "token_ids", 2**32 - 1, VOCABULARY),
                ([], 4, {}, {}, "sequences"),
                ([[]], 4, {}, {}, "token_ids"),
                ([[1], []], 4, {}, {}, "sequences[1]", "token_ids"),
                ([[1]] * (most + 1), 4, {}, {}, "sequences", most + 1, most),
                ([[1] * 8], CONTEXT - 7, {}, {}, "max_new_tokens", CONTEXT - 7, CONTEXT),
                ([[1] * 8], 2**32 - 1, {}, {}, "max_new_tokens", 2**32 - 1, CONTEXT),
                ([[1] * (CONTEXT + 1)], 1, {}, {}, "token_ids", CONTEXT + 1, CONTEXT),
                ([[1]], 0, {}, {}, "max_new_tokens", 0),
                ([[1]], 4, dict(temperature=-0.5), {}, "temperature", -0.5),
                ([[1]], 4, dict(temperature=float("nan")), {}, "temperature", "nan"),
                ([[1]], 4, dict(temperature=float("inf")), {}, "temperature", "inf"),
                ([[1]], 4, dict(temperature=1, top_p=0), {}, "top_p", 0),
                ([[1]], 4, dict(temperature=1, top_p=1.5), {}, "top_p", 1.5),
                ([[1]], 4, dict(temperature=1, top_p=float("nan")), {}, "top_p", "nan"),
                ([[1]], 4, dict(temperature=1, min_p=-0.25), {}, "min_p", -0.25),
                ([[1]], 4, dict(temperature=1, min_p=1.25), {}, "min_p", 1.25),
                ([[1]], 4, dict(repetition_penalty=0), {}, "repetition_penalty", 0),
                ([[1]], 4, dict(repetition_penalty=-1.5), {}, "repetition_penalty", -1.5),
                ([[1]], 4, dict(presence_penalty=float("inf")), {}, "presence_penalty", "inf"),
                ([[1]], 4, dict(frequency_penalty=float("nan")), {}, "frequency_penalty", "nan"),
                ([[1]], 4, {}, dict(logprobs=limits.max_logprobs + 1), "logprobs", limits.max_logprobs + 1,
                 limits.max_logprobs),
                ([[1]], 4, {}, dict(stop_token_ids=[VOCABULARY + 1]), "stop_token_ids", VOCABULARY + 1, VOCABULARY),
                ([[1]], 4, {}, dict(stop_token_ids=[1] * (limits.max_stop_token_ids + 1)), "stop_token_ids",
                 limits.max_stop_token_ids)):
            with self.subTest(needles=needles):
                self.assert_refused(INVALID, *map(str, needles),
                                    call=lambda: self.server.generate(prompts, tokens, sampling=sampling, **fields))
                refused += max(1, len(prompts))
        # A batch is refused whole, and each of its sequences counts.
        self.assertEqual(self.server.metric("moe_generated_tokens_total"), generated)
        self.assertEqual(self.server.metric("moe_requests_total", outcome="rejected"), rejected + refused)

    def test_the_largest_that_fits(self):
        (result,) = self.server.generate([[1] * 8], CONTEXT - 8)
        self.assertEqual((len(result.token_ids), result.reason), (CONTEXT - 8, "LENGTH"))
        (score,) = self.server.score([[1] * CONTEXT])
        self.assertEqual(len(score.token_logprobs), CONTEXT - 1)
        (score,) = self.server.score([[1]])
        self.assertEqual((len(score.token_logprobs), score.mean_nll), (0, 0))

    def test_score(self):
        for prompts, *needles in (([], "sequences"), ([[1], []], "sequences[1]", "token_ids"),
                                  ([[VOCABULARY]], "token_ids", VOCABULARY),
                                  ([[1] * (CONTEXT + 1)], CONTEXT + 1, CONTEXT)):
            with self.subTest(needles=needles):
                self.assert_refused(INVALID, *map(str, needles), call=lambda: self.server.score(prompts))
        unknown = serving.pb.ScoreRequest(sequences=[serving.pb.TokenSequence(token_ids=[1])], return_logits=7)
        self.assert_refused(INVALID, "return_logits", "7",
                            call=lambda: self.server.inference.Score(unknown, timeout=serving.CALL_SECONDS))

    def test_an_answer_over_the_size_limit(self):
        self.assert_refused(INVALID, "return_logits", call=lambda: self.server.score([[1] * CONTEXT] * 520, "ALL"))

    def test_a_message_over_the_size_limit(self):
        limit = self.server.model().limits.max_message_bytes
        self.assert_refused(EXHAUSTED, str(limit), call=lambda: self.server.generate([[1] * (limit + 1)], 4))

    def test_reflection_names_the_services(self):
        ask = self.server.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        list_services = b"\x3a\x00"  # field 7, an empty string
        answer = next(ask(iter([list_services]), timeout=serving.CALL_SECONDS))
        for service in (b"moe.v1.Inference", b"moe.v1.Cluster", b"grpc.health.v1.Health"):
            self.assertIn(service, answer)

    def test_a_drawn_seed_is_logged_and_repeats_the_answer(self):
        sampling = dict(temperature=1.5)
        drawn = self.server.generate([[1, 2]], 30, sampling=sampling, request_id="no-seed-4c")[0].token_ids
        line = next(line for line in self.server.log().splitlines() if "no-seed-4c" in line)
        seeds = [int(word) for word in line.replace(";", " ").split() if word.isdigit()]
        again = [self.server.generate([[1, 2]], 30, sampling=sampling | {"seed": seed})[0].token_ids for seed in seeds]
        self.assertIn(drawn, again)


class FullServerTest(serving.ServingTest):

    def test_a_full_queue_refuses_at_once(self):
        with serving.running(serving.MOE, 3, *SLOW, "--max-queued", 8) as server:
            with Load(server, calls=1) as running:
                server.wait_for_metric("moe_requests_running", lambda count: count == 1)
                with Load(server, calls=1, sequences=8) as queued:
                    # Batches that need all of the queue: it has no room for them as long as anybody waits.
                    self.assert_refused(EXHAUSTED, "--max-queued", "8", call=lambda: server.generate([[1]] * 8, 1))
                    self.assert_refused(EXHAUSTED, "--max-queued", "8", call=lambda: server.score([[1, 2]] * 8))
                    self.assertGreater(queued.waiting(), 0)  # refused while they wait, not after
                    self.assertEqual(queued.errors() + running.errors(), [])
            self.assertEqual(server.metric("moe_requests_total", outcome="rejected"), 8)  # scores are no requests
            self.assertEqual(server.metric("moe_requests_total", outcome="finished"), 9)
            self.assertEqual(len(server.generate([[1]], 5)[0].token_ids), 5)

    def test_too_many_calls_are_refused_at_once(self):
        with serving.running(serving.MOE, 0, *SLOW, "--max-queued", 8) as server:
            limit = server.model().limits.max_streams
            request = serving.generate_request([LONG_PROMPT], TOKENS)
            calls = [server.inference.Generate(request, timeout=serving.CALL_SECONDS) for _ in range(2 * limit)]
            codes = []
            for call in calls:
                with contextlib.suppress(grpc.RpcError):
                    list(call)
                codes.append(call.code())
            self.assertEqual(set(codes), {grpc.StatusCode.OK, EXHAUSTED})
            refused = codes.count(EXHAUSTED)
            self.assertEqual(server.metric("moe_requests_total", outcome="rejected"), refused)
            self.assertEqual(server.metric("moe_requests_total", outcome="finished"), len(codes) - refused)

    def test_more_than_the_cache_holds_is_refused_and_less_is_not(self):
        with serving.running(serving.MOE, 0, "--kv-tokens", 256) as server:
            self.assertEqual(server.metric("moe_kv_tokens_capacity"), 256)
            self.assert_refused(EXHAUSTED, "--kv-tokens", "256", call=lambda: server.generate([[1] * 200], 100))
            self.assert_refused(EXHAUSTED, "--kv-tokens", "256", call=lambda: server.score([[1] * 300]))
            # Each fits alone, all together do not: they take turns.
            results = server.generate([[1] * 100] * 8, 100)
            self.assertEqual({(len(result.token_ids), result.reason) for result in results}, {(100, "LENGTH")})
            server.wait_until_idle()


class GoneClientTest(serving.ServingTest):

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(serving.running(serving.MOE, 3, *SLOW))

    def check_gone(self, leave) -> None:
        """leave(server) sends LEFT_BEHIND long sequences and goes when some have come; all of them must end, long before
        they would be done, and be counted."""
        server = self.server
        before = server.metrics().by_label("moe_requests_total", "outcome")
        leave(server)
        server.wait_until_idle()
        after = server.metrics().by_label("moe_requests_total", "outcome")
        ended = {outcome: after[outcome] - before[outcome] for outcome in after}
        self.assertEqual(sum(ended.values()), LEFT_BEHIND)
        self.assertGreater(ended["cancelled"], LEFT_BEHIND // 2)
        self.assertEqual(server.generate([[1]], 5)[0].reason, "LENGTH")

    def open_stream(self, channel: grpc.Channel, **options):
        stub = serving.pb.InferenceStub(channel)
        call = stub.Generate(serving.generate_request([LONG_PROMPT] * LEFT_BEHIND, TOKENS), **options)
        next(call)
        self.assertGreater(self.server.metric("moe_kv_tokens_used"), 0)
        return call

    def test_cancelled_call(self):
        def leave(server):
            call = self.open_stream(server.channel, timeout=serving.CALL_SECONDS)
            call.cancel()
        self.check_gone(leave)

    def test_closed_connection(self):
        def leave(server):
            with contextlib.closing(server.connect()) as channel:
                self.open_stream(channel, timeout=serving.CALL_SECONDS)
        self.check_gone(leave)

    def test_deadline_passed(self):
        def leave(server):
            with self.assertRaises(grpc.RpcError) as caught:
                list(self.open_stream(server.channel, timeout=2))
            self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.check_gone(leave)

    def test_killed_client(self):
        def leave(server):
            ids = " ".join(map(str, LONG_PROMPT))
            client = subprocess.Popen(
                [sys.executable, "-B", str(serving.ROOT / "examples/python_client.py"), "--server", server.address,
                 "--ids", "--max-new-tokens", str(TOKENS), *[ids] * LEFT_BEHIND], stdout=subprocess.DEVNULL)
            try:
                server.wait_for_metric("moe_kv_tokens_used", lambda used: used > 0)
            finally:
                client.send_signal(signal.SIGKILL)
                client.wait()
        self.check_gone(leave)


class LateReaderTest(serving.ServingTest):

    def test_a_client_that_does_not_read_holds_nobody_up(self):
        self.server = self.enterContext(serving.running(serving.MOE, 3))
        count, tokens, logprobs = 32, 250, 20  # some megabytes, far more than gRPC buffers
        request = serving.generate_request([[1, 2, 3]] * count, tokens, logprobs=logprobs)
        call = self.server.inference.Generate(request, timeout=serving.CALL_SECONDS)
        self.server.wait_for_metric("moe_requests_running", lambda running: running > 0)
        self.assertEqual(self.server.generate([[1]], 5)[0].reason, "LENGTH")
        self.server.wait_until_idle()  # all of it is generated; only the reader is late
        results = [serving.Continuation() for _ in request.sequences]
        for event in call:
            results[event.sequence].add(event)
        self.assertEqual({(tuple(result.token_ids), result.reason) for result in results},
                         {(tuple(results[0].token_ids), "LENGTH")})
        self.assertEqual([len(result.logprobs) for result in results], [tokens] * count)


if __name__ == "__main__":
    serving.main()
