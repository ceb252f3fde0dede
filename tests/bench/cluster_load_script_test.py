#!/usr/bin/python3
"""bench/cluster_load_test.sh against stand-ins for moe_serve, with the real mpirun, Prometheus and moe_bench.
Usage: cluster_load_script_test.py SOURCE_DIR BINARY_DIR"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(sys.argv[1] if len(sys.argv) > 2 else ".").resolve()
BINARY = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "build/release").resolve()
LOAD = "--num-requests 6 --concurrency 2 --warmup 2 --input-len 8 --output-len 5"


class ClusterLoadTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.output = self.folder / "results"

    def run_script(self, fault: str, ranks: int = 3, *more: str) -> subprocess.CompletedProcess:
        program = self.folder / "moe_serve"
        program.write_text(f"#!/bin/sh\nexec /usr/bin/python3 -B '{SOURCE}/tests/bench/fake_moe_serve.py' "
                           f"'{BINARY}/python' {fault} \"$@\"\n")
        program.chmod(0o755)
        return subprocess.run(
            [SOURCE / "bench/cluster_load_test.sh", "--ranks", str(ranks), "--server-binary", self.folder, "--bench-binary",
             BINARY / "bin", "--output", self.output, "--load-args", LOAD, "--settle-timeout", "10", *more],
            capture_output=True, text=True, check=False, timeout=120)

    def result(self) -> dict:
        return json.loads((self.output / "result.json").read_text())

    def test_agreement_is_success(self):
        for ranks in (1, 3):
            with self.subTest(ranks=ranks):
                self.output = self.folder / f"results-{ranks}"
                run = self.run_script("none", ranks)
                self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
                result = self.result()
                self.assertEqual((result["kind"], result["schema"]), ("cluster_load", 1))
                checks = {check["name"]: check for check in result["results"]["checks"]}
                for name, count in (("prompt tokens", 8 * 8), ("generated tokens", 8 * 5), ("requests finished", 8)):
                    self.assertEqual([checks[name][who] for who in ("client", "prometheus", "direct")], [count] * 3, name)
                self.assertEqual(checks["rows computed (workers)"]["direct"], (64 + 40) * 6)
                self.assertEqual(len(result["results"]["ranks"]), ranks)
                self.assertEqual(sum(row["tokens"] for row in result["results"]["experts"]), (64 + 40) * 6)
                latencies = {(row["latency"], row["quantile"]): row for row in result["results"]["latencies"]}
                # All in the bucket from 1 to 10 ms, half of it below the median.
                self.assertAlmostEqual(latencies["ttft", 0.5]["direct_ms"], 5.5)
                self.assertAlmostEqual(latencies["ttft", 0.5]["prometheus_ms"], 5.5)
                self.assertGreater(latencies["ttft", 0.5]["client_ms"], 0)
                for name in ("table.txt", "load.json", "metrics.txt", "before.txt", "server.log", "prometheus.yml"):
                    self.assertTrue((self.output / name).exists(), name)
                self.assertIn("all counts agree", run.stdout)

    def test_a_token_that_only_the_server_counts_is_found(self):
        run = self.run_script("lose-token", 2)
        self.assertEqual(run.returncode, 1, run.stdout + run.stderr)
        self.assertEqual(self.result()["results"]["problems"],
                         ["generated tokens: client 40, Prometheus 41, scrape 41"])

    def test_a_row_that_no_worker_computed_is_found(self):
        run = self.run_script("lose-row")
        self.assertEqual(run.returncode, 1, run.stdout + run.stderr)
        self.assertEqual(len(self.result()["results"]["problems"]), 1)
        self.assertIn("624, 624, 623", self.result()["results"]["problems"][0])

    def test_a_server_that_ends_badly_is_a_failure(self):
        run = self.run_script("fail-exit")
        self.assertEqual(run.returncode, 1, run.stdout + run.stderr)
        self.assertIn("0 was expected", run.stderr)

    def test_a_server_that_does_not_start_is_a_failure(self):
        run = self.run_script("no-such-fault --ready-file /nonexistent/ready #")
        self.assertEqual(run.returncode, 1, run.stdout + run.stderr)
        self.assertIn("ended before it was ready", run.stderr)

    def test_bad_usage_is_exit_code_two(self):
        for flags in (["--ranks", "0"], ["--ranks"], ["--nonsense", "1"], ["--server-binary", "/nonexistent"],
                      ["--output", str(self.folder)]):
            with self.subTest(flags=flags):
                run = self.run_script("none", 2, *flags)
                self.assertEqual(run.returncode, 2, run.stdout + run.stderr)
                self.assertEqual(len(run.stderr.splitlines()), 1, run.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
