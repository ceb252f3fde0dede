#!/usr/bin/python3
"""bench/plot_balancing.py and bench/sample_server.py on made-up results: what is drawn of them, that pictures come of it,
what is refused."""

import contextlib
import http.server
import importlib.util
import io
import json
import pathlib
import struct
import sys
import tempfile
import threading
import unittest
import zlib

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "bench"))


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, SOURCE / f"bench/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


exposition = load("exposition")
plot_balancing = load("plot_balancing")
sample_server = load("sample_server")


def trace(experts: list[int]) -> bytes:
    """One layer of one step whose rows choose these, one each."""
    header = json.dumps({"model": "tiny", "routing": "gate", "layers": [3], "encoder_layers": 0, "num_experts": 4,
                         "experts_per_token": 1}).encode()
    content = struct.pack("<8sII", b"MOETRACE", 1, len(header)) + header
    content += struct.pack("<I", zlib.crc32(content))
    payload = struct.pack("<QQQII", 0, 0, 1, 0, len(experts)) + struct.pack(f"<{len(experts)}H", *experts)
    payload += struct.pack(f"<{len(experts)}f", *[1.0] * len(experts))
    frame = struct.pack("<II", 1, len(payload))
    return content + frame + struct.pack("<I", zlib.crc32(payload, zlib.crc32(frame))) + payload


def replay(placement: str, rows: list[int]) -> dict:
    result = {"placement": placement, "slots": 4, "worker_rows": rows, "trace_model": "tiny",
              "layers": [{"layer": 3, "expert_tokens": [4, 2, 1, 1], "worker_rows": rows}]}
    return {"schema": 1, "kind": "replay", "results": [result]}


SAMPLES = ("seconds,tokens_per_s,inter_token_p50,inter_token_p99,step_p99,placement_generation,migrations,migration_bytes\n"
           "1,100,0.001,0.002,0.003,1,0,0\n2,90,,,0.004,2,1,5000\n3,110,0.001,0.002,0.003,2,0,0\n")

METRICS = """moe_generated_tokens_total {tokens}
moe_placement_generation 4
moe_migrations_total{{outcome="finished"}} {migrations}
moe_migration_bytes_total {bytes}
moe_request_inter_token_seconds_bucket{{le="0.001"}} {tokens}
moe_request_inter_token_seconds_bucket{{le="0.002"}} {late}
moe_request_inter_token_seconds_bucket{{le="+Inf"}} {late}
"""


class PlotBalancingTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moe-plot-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, name: str, content) -> pathlib.Path:
        path = self.folder / name
        if isinstance(content, dict):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def run_main(self, *arguments) -> tuple[int, str]:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            code = plot_balancing.main([str(argument) for argument in arguments])
        return code, errors.getvalue()

    def test_loads_come_from_traces_load_files_and_replays(self):
        recorded = plot_balancing.read_loads(self.write("a.moetrace", trace([0, 0, 0, 2])))
        self.assertEqual((recorded.layers, recorded.tokens), ([3], [[3, 0, 1, 0]]))
        self.assertEqual(recorded.shares(), [[3.0, 0.0, 1.0, 0.0]])
        self.assertAlmostEqual(recorded.balancedness(), 1 / 3)
        plain = plot_balancing.read_loads(self.write("loads.json", {"layers": [[1, 3], [0, 0]]}))
        self.assertEqual((plain.layers, plain.shares()), ([0, 1], [[0.5, 1.5], [0.0, 0.0]]))
        measured = plot_balancing.read_loads(self.write("replay.json", replay("linear", [6, 2])))
        self.assertEqual((measured.layers, measured.tokens), ([3], [[4, 2, 1, 1]]))

    def test_rows_are_set_beside_their_mean(self):
        result = plot_balancing.read_replay(self.write("replay.json", replay("linear", [6, 2])))
        self.assertEqual(result.over_mean(), [1.5, 0.5])
        self.assertEqual((result.model, result.name), ("tiny", "linear, 4 slots"))

    def test_a_second_without_tokens_has_no_latency(self):
        samples = plot_balancing.read_samples(self.write("samples.csv", SAMPLES))
        self.assertEqual([sample["inter_token_p99"] for sample in samples], [0.002, None, 0.002])

    def test_pictures_come_of_it(self):
        before = self.write("before.json", replay("linear", [6, 2]))
        after = self.write("after.json", replay("auto", [4, 4]))
        loads = self.write("loads.json", {"layers": [[1, 3], [2, 2]]})
        samples = self.write("samples.csv", SAMPLES)
        for picture, files in (("heat", (loads, before)), ("ranks", (before, after)), ("timeline", (samples,))):
            for suffix, begin in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
                path = self.folder / f"{picture}{suffix}"
                self.assertEqual(self.run_main(picture, *files, "--output", path), (0, ""))
                self.assertTrue(path.read_bytes().startswith(begin))

    def test_what_is_none_of_these_is_refused_by_name(self):
        good = self.write("replay.json", replay("linear", [1, 1]))
        for picture, file, needle in (
                ("heat", self.folder / "none.json", "none.json"),
                ("heat", self.write("bad.moetrace", b"MOETRACE"), "not a routing trace"),
                ("heat", self.write("text.json", "{"), "not JSON"),
                ("heat", self.write("empty.json", {"layers": []}), "has no loads"),
                ("ranks", self.write("loads.json", {"layers": [[1]]}), "moe_bench replay"),
                ("ranks", self.write("half.json", {"schema": 1, "kind": "replay", "results": [{"slots": 1}]}), "trace_model"),
                ("timeline", self.write("a.csv", "seconds\n1\n"), "tokens_per_s"),
                ("timeline", self.write("b.csv", "seconds\nx\n"), "CSV")):
            with self.subTest(file=file.name):
                code, said = self.run_main(picture, file, "--output", self.folder / "x.png")
                self.assertEqual(code, 2, said)
                self.assertIn(needle, said)
        code, said = self.run_main("ranks", good, "--output", self.folder / "x.txt")
        self.assertEqual((code, "a picture ends in" in said), (2, True))


class SampleServerTest(unittest.TestCase):

    def test_a_line_is_what_happened_in_between(self):
        texts = [METRICS.format(tokens=1000, late=1000, migrations=2, bytes=10_000),
                 METRICS.format(tokens=1300, late=1400, migrations=3, bytes=15_000)]
        before, after = (exposition.Snapshot([text]) for text in texts)
        line = sample_server.row(before, after, 7.0, 2.0)
        self.assertEqual(line["tokens_per_s"], 150)
        self.assertEqual((line["placement_generation"], line["migrations"], line["migration_bytes"]), (4, 1, 5000))
        # 300 of 400 within 1 ms: the 396th is 96 % of the way through the next bucket.
        self.assertAlmostEqual(line["inter_token_p99"], 0.00196)
        self.assertIsNone(line["step_p99"])

    def test_every_interval_of_a_server_becomes_a_line(self):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                text = METRICS.format(tokens=10 * len(asked), late=10 * len(asked), migrations=0, bytes=0).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        out = io.StringIO()
        sample_server.sample(f"127.0.0.1:{server.server_port}", 0.06, 0.02, out)
        header, *lines = out.getvalue().splitlines()
        self.assertEqual(header, ",".join(sample_server.COLUMNS))
        self.assertEqual((len(lines), set(asked)), (3, {"/metrics"}))
        self.assertGreater(float(lines[0].split(",")[1]), 0)

    def test_a_server_that_is_not_there_and_bad_usage_have_codes_of_their_own(self):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(sample_server.main(["--metrics", "127.0.0.1:1", "--seconds", "1"]), 1)
            self.assertEqual(sample_server.main(["--metrics", "127.0.0.1:1", "--interval", "0"]), 2)
        self.assertIn("127.0.0.1:1", errors.getvalue())
        self.assertIn("--interval 0", errors.getvalue())


if __name__ == "__main__":
    unittest.main()
