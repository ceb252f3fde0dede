#!/usr/bin/python3
"""bench/plot_transport.py on made-up results: what its lines are, that a picture comes of it, what it refuses."""

import contextlib
import importlib.util
import io
import json
import pathlib
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "bench"))
_spec = importlib.util.spec_from_file_location("plot_transport", SOURCE / "bench/plot_transport.py")
plot_transport = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plot_transport)


def figures(size: int, scale: float) -> dict:
    seconds = scale * (1e-6 + size * 1e-9)
    return {"seconds": {"p10": seconds / 2, "p50": seconds, "p90": 2 * seconds, "p99": 3 * seconds},
            "busbw_bytes_per_s": 2 * size / seconds, "algbw_bytes_per_s": 4 * size / seconds}


def result(transport: str, workers: int, size: int) -> dict:
    return {"transport": transport, "workers": workers, "request_bytes": size, "reply_bytes": size,
            "baselines": [{"name": f"raw_{transport}"} | figures(size, 1)]} | figures(size, 2)


def report(results: list[dict]) -> dict:
    return {"schema": 1, "kind": "transport", "when": "2024-01-01T00:00:00Z", "host": {"cpu": "Fake CPU", "cores": 2},
            "build": {"version": "0", "commit": "abc", "compiler": "none"}, "config": {}, "results": results}


SOME = [result(transport, workers, size) for transport in ("mpi", "grpc") for workers in (3, 1) for size in (4096, 64)]


class PlotTransportTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moe-plot-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_main(self, content: str, *arguments) -> tuple[int, str]:
        path = self.folder / "transport.json"
        path.write_text(content)
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            code = plot_transport.main([str(path), *map(str, arguments)])
        return code, errors.getvalue()

    def test_every_transport_and_bare_loop_is_a_line_of_its_workers(self):
        columns = plot_transport.lines_of(SOME)
        self.assertEqual(list(columns), [1, 3])
        for lines in columns.values():
            self.assertEqual([(line.name, line.transport, line.baseline) for line in lines],
                             [("mpi", "mpi", False), ("raw_mpi", "mpi", True), ("grpc", "grpc", False),
                              ("raw_grpc", "grpc", True)])
            self.assertEqual(lines[0].sizes, [64, 4096])
            self.assertEqual(lines[0].p50, [figures(64, 2)["seconds"]["p50"], figures(4096, 2)["seconds"]["p50"]])
            self.assertEqual(lines[1].bandwidth[1], figures(4096, 1)["busbw_bytes_per_s"])

    def test_a_picture_is_drawn_beside_the_result_or_where_asked(self):
        self.assertEqual(self.run_main(json.dumps(report(SOME))), (0, ""))
        self.assertEqual((self.folder / "transport.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual(self.run_main(json.dumps(report(SOME[:1])), "--output", self.folder / "one.svg"), (0, ""))
        self.assertIn("</svg>", (self.folder / "one.svg").read_text())

    def test_sizes_are_shown_in_binary_units(self):
        self.assertEqual([plot_transport.shown_size(size) for size in (64, 4096, 16 << 20)], ["64 B", "4 KiB", "16 MiB"])

    def test_what_is_no_result_is_refused_in_one_sentence(self):
        incomplete = json.loads(json.dumps(report(SOME)))
        del incomplete["results"][0]["busbw_bytes_per_s"]
        for content, arguments, complaint in (
                ("{", (), "is not JSON"), ("[]", (), "is not a JSON object"),
                (json.dumps(report(SOME) | {"kind": "engine"}), (), "kind transport"),
                (json.dumps(report([])), (), "has no results"),
                (json.dumps(incomplete), (), "a result without 'busbw_bytes_per_s'"),
                (json.dumps(report(SOME)), ("--output", self.folder / "x.txt"), "a picture ends in .png, .svg, .pdf"),
                (json.dumps(report(SOME)), ("--output", self.folder / "nowhere/x.png"), "No such file")):
            with self.subTest(complaint):
                code, errors = self.run_main(content, *arguments)
                self.assertEqual(code, 2)
                self.assertIn(complaint, errors)
                self.assertEqual(errors.count("\n"), 1, errors)


if __name__ == "__main__":
    unittest.main()
