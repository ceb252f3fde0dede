"""Routing as an operator sees and records it: traces by flag and by call, synthetic routing and its marks, alarms."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import grpc

import serving

sys.path.insert(0, str(serving.ROOT / "bench"))
import read_trace  # noqa: E402

COLLAPSED = serving.MODELS / "eight-languages-collapsed"
PROMPTS = [[1, 2, 3], list(range(100)), [7] * 30]


def corpus_windows(count: int, length: int = 256) -> list[list[int]]:
    """Of the text that the bundled models are judged by, as bytes."""
    text = (serving.MODELS / "held-out.txt").read_bytes()
    stride = len(text) // count
    return [list(text[i * stride:i * stride + length]) for i in range(count)]


def expected_loads(results, layers: int, experts: int) -> list[list[int]]:
    loads = [[0] * experts for _ in range(layers)]
    for result in results:
        for layer in result.routing:
            for expert, weight in zip(layer.expert_ids, layer.weights, strict=True):
                loads[layer.layer][expert] += weight != 0
    return loads


class TraceTest(serving.ServingTest):

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="moe-e2e-trace-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def start(self, server, path, **fields):
        server.cluster.StartTrace(serving.pb.StartTraceRequest(path=str(path), **fields), timeout=serving.CALL_SECONDS)

    def stop(self, server):
        return server.cluster.StopTrace(serving.pb.StopTraceRequest(), timeout=serving.CALL_SECONDS).trace

    def refusal(self, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        return caught.exception.code().name, caught.exception.details()

    def test_a_trace_from_the_first_step_on(self):
        path = self.folder / "whole.moetrace"
        path.write_text("what was there before")
        with serving.running(serving.MOE) as server:
            plain = [result.token_ids for result in server.generate(PROMPTS, 12)]
        with serving.running(serving.MOE, 3, "--trace", path, "--trace-limit", "100M") as server:
            results = server.generate(PROMPTS, 12, return_routing=True)
            self.assertEqual([result.token_ids for result in results], plain)
            server.wait_until_idle()
            self.assertTrue(server.get_cluster().trace.recording)
            self.assertEqual(server.metric("moe_trace_recording"), 1)
            steps = server.metric("moe_steps_total")
        trace = read_trace.loads(path)
        self.assertEqual(trace["steps"], steps)
        self.assertEqual(trace["header"]["model"], serving.MOE.name)
        self.assertEqual(trace["header"]["placement"]["workers"], 2)
        self.assertEqual(trace["layers"], expected_loads(results, 4, 8))
        imported = subprocess.run([sys.executable, "-B", str(serving.ROOT / "bench/import_loads.py"), str(path)],
                                  stdout=subprocess.PIPE, check=True, text=True)
        self.assertEqual(json.loads(imported.stdout)["layers"], trace["layers"])

    def test_traces_by_call(self):
        with serving.running(serving.MOE) as server:
            self.assertEqual(self.refusal(lambda: self.stop(server))[0], "NOT_FOUND")
            path = self.folder / "called.moetrace"
            self.start(server, path)
            code, words = self.refusal(lambda: self.start(server, self.folder / "second.moetrace"))
            self.assertEqual(code, "RESOURCE_EXHAUSTED")
            self.assertIn(str(path), words)
            results = server.generate(PROMPTS, 5, return_routing=True)
            trace = self.stop(server)
            self.assertEqual((trace.path, trace.recording, trace.end), (str(path), False, serving.pb.TRACE_END_STOPPED))
            self.assertEqual(trace.bytes, path.stat().st_size)
            self.assertEqual(read_trace.loads(path)["layers"], expected_loads(results, 4, 8))
            self.assertEqual(server.metric("moe_trace_steps_total"), trace.steps)

            for name, needle in (("called.moetrace", "File exists"), ("a.txt", "does not end in .moetrace"),
                                 ("nowhere/a.moetrace", "No such file")):
                code, words = self.refusal(lambda: self.start(server, self.folder / name))
                self.assertEqual(code, "INVALID_ARGUMENT")
                self.assertIn(needle, words)

            short = self.folder / "short.moetrace"
            self.start(server, short, limit_bytes=5000)
            server.generate([[1]], 200)
            trace = self.stop(server)
            self.assertEqual(trace.end, serving.pb.TRACE_END_LIMIT)
            self.assertLessEqual(short.stat().st_size, 5000)
            self.assertEqual(read_trace.loads(short)["steps"], trace.steps)
            self.assertIn("has reached its limit", server.log())

    def test_what_a_killed_server_leaves_is_readable(self):
        path = self.folder / "broken.moetrace"
        with serving.running(serving.MOE, 0, "--trace", path, expect_clean_stop=False) as server:
            server.generate([[1, 2]], 20)
            serving.wait_until(lambda: server.metric("moe_trace_steps_total") == 20, "steps of the trace")
            server.signal(signal.SIGKILL)
            server.wait_for_exit()
        self.assertEqual(read_trace.loads(path)["steps"], 20)


class SyntheticRoutingTest(serving.ServingTest):

    def test_every_topology_takes_the_same_experts_and_says_so(self):
        shares = {"hot:2,0.75": (0.375, 0.02), "uniform": (0.125, 0.02)}
        windows = corpus_windows(16)
        for routing, (most, tolerance) in shares.items():
            seen = []
            for ranks, flags in ((0, ()), (4, ("--placement", "round_robin", "--redundant-experts", "3"))):
                with serving.running(serving.MOE, ranks, "--routing", routing, *flags) as server:
                    tokens = [result.token_ids for result in server.generate(PROMPTS, 12)]
                    nll = [score.mean_nll for score in server.score(windows)]
                    cluster = server.get_cluster()
                    self.assertEqual((server.model().routing, cluster.routing), (routing, routing))
                    self.assertEqual(server.metric("moe_routing_info", routing=routing), 1)
                    self.assertIn(f"--routing {routing}", server.log())
                    loads = [list(layer.expert_tokens) for layer in cluster.layers]
                seen.append((tokens, nll, loads))
            self.assertEqual(seen[0], seen[1])
            for load in loads:
                self.assertAlmostEqual(max(load) / sum(load), most, delta=tolerance)
        with serving.running(serving.MOE) as server:
            self.assertEqual(server.model().routing, "gate")
            self.assertNotEqual([result.token_ids for result in server.generate(PROMPTS, 12)], tokens)

    def test_what_cannot_be_is_refused(self):
        for flags, code, needle in ((("--routing", "zipf"), 2, 'routing "zipf" is unknown'),
                                    (("--trace-limit", "1K"), 2, "--trace-limit"),
                                    # What the model or the disk says no to.
                                    (("--routing", "hot:1,0.9"), 1, "1 get at most 0.5 of the rows"),
                                    (("--routing", "trace:/nonexistent"), 1, "/nonexistent"),
                                    (("--trace", "/nonexistent/a"), 1, "--trace: trace /nonexistent/a cannot be")):
            outcome = serving.run(["--model", serving.MOE, "--metrics-port", "0", "--listen", "127.0.0.1:0", *flags])
            self.assertEqual(outcome.exit_code, code, outcome.stderr)
            self.assertIn(needle, outcome.stderr)


class AlarmTest(serving.ServingTest):

    def check(self, model: pathlib.Path, collapsed: bool) -> None:
        with serving.running(model) as server:
            self.assertEqual([layer.collapsed_alarm for layer in server.get_cluster().layers], [False] * 4)
            for _ in range(2):
                server.score(corpus_windows(32))
            cluster = server.get_cluster()
            metrics = server.metrics()
            log = server.log()
        self.assertEqual([layer.collapsed_alarm for layer in cluster.layers], [collapsed] * 4)
        self.assertEqual(set(metrics.by_label("moe_layer_collapsed_alarm", "layer").values()), {float(collapsed)})
        dead = [layer.dead_experts_alarm for layer in cluster.layers]
        self.assertEqual([int(value) for value in metrics.by_label("moe_layer_dead_experts_alarm", "layer").values()],
                         dead)
        self.assertEqual(log.count("has collapsed"), 4 if collapsed else 0, log)
        if not collapsed:
            self.assertEqual(dead, [0] * 4)
            self.assertNotIn("dead", log)
        self.assertEqual(metrics.get("moe_load_window_steps"), cluster.window_steps)
        self.assertGreater(cluster.window_seconds, 0)

    def test_a_healthy_model_raises_none(self):
        self.check(serving.MOE, collapsed=False)

    def test_a_collapsed_model_raises_it_once_a_layer(self):
        self.check(COLLAPSED, collapsed=True)


if __name__ == "__main__":
    serving.main()
