"""moe_bench engine, replay and transport as MPI jobs: one rank measures and speaks, the others answer, and the same work is done
as in one process."""

import json
import subprocess
import tempfile
import unittest

import serving

TINY = ("-p", 24, "-n", 6, "-b", "1,3", "-r", 1, "--threads", 1, "--no-roofs", "--json")


def bench(command: str, *flags, ranks: int = 0) -> subprocess.CompletedProcess:
    launcher = [*serving.MPIRUN, "-n", str(ranks)] if ranks else []
    return subprocess.run([*launcher, str(serving.BIN_DIR / "moe_bench"), command, *map(str, flags)],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=serving.CALL_SECONDS, env=serving.clean_environment())


def own_lines(run: subprocess.CompletedProcess) -> list[str]:
    """What the program itself said, without mpirun's words."""
    return [line for line in run.stderr.splitlines() if line.startswith("moe_bench:")]


class EngineBenchTest(unittest.TestCase):

    def results(self, *flags, ranks: int = 0) -> list[dict]:
        run = bench("engine", "--model", serving.MOE, *TINY, *flags, ranks=ranks)
        self.assertEqual((run.returncode, own_lines(run)), (0, []), run.stderr)
        report = json.loads(run.stdout)  # one report, whoever else has a standard output
        self.assertEqual(report["kind"], "engine")
        return report["results"]

    def test_ranks_do_the_same_work_as_one_process(self):
        alone = self.results()
        self.assertEqual([(result["test"], result["batch"]) for result in alone],
                         [("pp24", 1), ("pp24", 3), ("tg6", 1), ("tg6", 3)])
        for ranks, flags in ((1, ()), (2, ()), (4, ("--placement", "round_robin", "--redundant-experts", 2))):
            with self.subTest(ranks=ranks):
                results = self.results(*flags, ranks=ranks)
                for result, expected in zip(results, alone, strict=True):
                    self.assertEqual(result["ranks"], ranks)
                    self.assertEqual(result["transport"], "mpi" if ranks > 1 else "inprocess")
                    self.assertGreater(result["tokens_per_s"], 0)
                    self.assertLessEqual(set(result["micro_batches"]), {"1", "2"} if ranks > 1 else {"1"})
                    self.assertEqual(sum(result["micro_batches"].values()), sum(expected["micro_batches"].values()))
                    self.assertEqual(result["distinct_experts"], expected["distinct_experts"])
                    self.assertAlmostEqual(result["bytes_per_token"] / expected["bytes_per_token"], 1)

    def test_micro_batches_take_turns_and_are_predicted_over_every_transport(self):
        alone = self.results()
        for transport in ("mpi", "grpc"):
            with self.subTest(transport):
                results = self.results("--micro-batches", "1,3", "--transport", transport, ranks=3)
                self.assertEqual([result["micro_batches_asked"] for result in results], [1, 3] * len(alone))
                for result, expected in zip(results, (same for same in alone for _ in range(2)), strict=True):
                    self.assertEqual((result["test"], result["batch"]), (expected["test"], expected["batch"]))
                    self.assertEqual((result["ranks"], result["transport"]), (3, transport))
                    self.assertEqual(result["distinct_experts"], expected["distinct_experts"])
                    rows = result["batch"] if result["test"] == "tg6" else 24 * result["batch"]
                    self.assertEqual(set(result["micro_batches"]), {str(min(rows, result["micro_batches_asked"]))})
                    self.assertGreater(result["predicted_step_seconds"], 0)
                    self.assertAlmostEqual(result["prediction_error"],
                                           result["predicted_step_seconds"] / result["step_seconds"] - 1)
                    self.assertEqual(result["overlap"]["sparse_layers"], 4)

    def test_a_trace_is_taken_in_turns_and_changes_no_work(self):
        with tempfile.TemporaryDirectory(prefix="moe-e2e-") as folder:
            alone = self.results("--routing", "zipf:1")
            results = self.results("--routing", "zipf:1", "--trace", f"{folder}/bench.moetrace", ranks=3)
            self.assertEqual([result["traced"] for result in results], [False, True] * len(alone))
            for result, expected in zip(results, (same for same in alone for _ in range(2)), strict=True):
                self.assertEqual((result["test"], result["routing"]), (expected["test"], "zipf:1"))
                self.assertEqual(result["distinct_experts"], expected["distinct_experts"])
                self.assertEqual(result["trace_cost"] is None, not result["traced"])
            with open(f"{folder}/bench.moetrace", "rb") as file:
                self.assertEqual(file.read(8), b"MOETRACE")

    def test_one_rank_says_what_is_wrong_and_all_end(self):
        for flags, needle in ((("--model", serving.MOE, "-p", 513), "context of 512"),
                              (("--model", "/nonexistent"), "/nonexistent"),
                              (("--model", serving.MOE, "--nonsense"), "--nonsense"),
                              (("--model", serving.MOE, "--transport", "inprocess"), "--transport inprocess"),
                              (("--model", serving.MOE, "--output", "/nonexistent/x"), "/nonexistent/x")):
            with self.subTest(flags=flags):
                run = bench("engine", *flags, "--no-roofs", ranks=3)
                self.assertEqual(run.returncode, 2, run.stderr)
                self.assertEqual(run.stdout, "")
                (line,) = own_lines(run)
                self.assertIn(needle, line)

    def test_help_is_said_once(self):
        run = bench("engine", "--help", ranks=3)
        self.assertEqual(run.returncode, 0)
        self.assertEqual(run.stdout.count("Examples:"), 1)


class ReplayBenchTest(unittest.TestCase):

    def test_a_trace_is_replayed_over_every_transport(self):
        with tempfile.TemporaryDirectory(prefix="moe-e2e-") as folder:
            trace = f"{folder}/some.moetrace"
            run = bench("engine", "--model", serving.MOE, *TINY, "--trace", trace)
            self.assertEqual(run.returncode, 0, run.stderr)
            expected = None
            for ranks, flags in ((0, ("--workers", 3)), (4, ()), (4, ("--transport", "grpc"))):
                with self.subTest(ranks=ranks, flags=flags):
                    run = bench("replay", "--trace", trace, "--model", serving.MOE, "--redundant-experts", 3, "--threads",
                                1, "-r", 1, "--json", *flags, ranks=ranks)
                    self.assertEqual((run.returncode, own_lines(run)), (0, []), run.stderr)
                    (result,) = json.loads(run.stdout)["results"]
                    self.assertEqual((result["workers"], result["ranks"]), (3, ranks or 1))
                    self.assertGreater(result["prediction"]["predicted_step_seconds"]["mean"], 0)
                    counts = [result[key] for key in ("steps", "rows", "worker_rows", "request_bytes", "reply_bytes")]
                    expected = expected or counts
                    self.assertEqual(counts, expected, "who computes what does not depend on the transport")

    def test_workers_of_a_job_are_its_ranks(self):
        run = bench("replay", "--trace", "/nonexistent", "--model", serving.MOE, "--workers", 2, ranks=3)
        self.assertEqual(run.returncode, 2, run.stderr)
        (line,) = own_lines(run)
        self.assertIn("--workers 2", line)


class TransportBenchTest(unittest.TestCase):

    def test_the_mpi_transport_is_set_beside_a_bare_loop(self):
        for ranks in (2, 5):
            with self.subTest(ranks=ranks):
                run = bench("transport", "--rows", "1,70", "--hidden", 256, "--exchange-type", "bf16", "--repetitions", 3,
                            "--exchanges", 2, "--json", ranks=ranks)
                self.assertEqual((run.returncode, own_lines(run)), (0, []), run.stderr)
                report = json.loads(run.stdout)
                self.assertEqual(report["kind"], "transport")
                self.assertEqual([result["rows"] for result in report["results"]], [1, 70])
                for result in report["results"]:
                    self.assertEqual((result["transport"], result["ranks"], result["workers"]), ("mpi", ranks, ranks - 1))
                    self.assertEqual(result["exchanges"], 6)
                    self.assertGreaterEqual(result["request_bytes"], result["rows"] * 256 * 2)
                    (baseline,) = result["baselines"]
                    self.assertEqual(baseline["name"], "raw_mpi")
                    self.assertAlmostEqual(baseline["ratio"], result["seconds"]["p50"] / baseline["seconds"]["p50"])

    def test_transports_take_turns_between_the_same_processes(self):
        run = bench("transport", "--transports", "mpi,grpc", "--bytes", "64,16K", "--workers", "2,3", "--repetitions", 2,
                    "--exchanges", 2, "--json", ranks=4)
        self.assertEqual((run.returncode, own_lines(run)), (0, []), run.stderr)
        results = json.loads(run.stdout)["results"]
        # The first is for the latency: one worker.
        tests = [(1, 64), (2, 64), (2, 16384), (3, 64), (3, 16384)]
        self.assertEqual([(result["transport"], result["workers"], result["request_bytes"]) for result in results],
                         [(transport, *test) for transport in ("mpi", "grpc") for test in tests])
        for result in results:
            (baseline,) = result["baselines"]
            self.assertEqual((result["ranks"], baseline["name"]), (4, f"raw_{result['transport']}"))
            for figures in (result, baseline):
                median = figures["seconds"]["p50"]
                self.assertLessEqual(median, figures["seconds"]["p99"])
                self.assertAlmostEqual(figures["busbw_bytes_per_s"] * median,
                                       2 * result["workers"] * result["request_bytes"], delta=1)
                self.assertEqual(figures["one_way_latency_seconds"], median / 2 if result["workers"] == 1 else None)

    def test_all_transports_are_those_that_can_run(self):
        run = bench("transport", "--transports", "all", "--bytes", 64, "--repetitions", 1, "--exchanges", 1, "--json",
                    ranks=2)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual({result["transport"] for result in json.loads(run.stdout)["results"]}, {"mpi", "grpc", "grpc_streams"})
        inprocess, nccl = own_lines(run)
        self.assertIn("leaves out inprocess: inprocess joins threads of one process; mpirun started 2 ranks", inprocess)
        self.assertIn("leaves out nccl", nccl)

    def test_one_rank_says_what_is_wrong_and_all_end(self):
        for flags, needle in ((("--rows", 0), "--rows 0"), (("--workers", 3), "--workers 3: 1 to 2 can take part"),
                              (("--transports", "mpi,inprocess"), "--transports inprocess: inprocess joins threads"),
                              (("--transports", "nccl"), "--transports nccl: nccl needs"),
                              (("--output", "/nonexistent/x"), "/nonexistent/x")):
            with self.subTest(flags=flags):
                run = bench("transport", *flags, ranks=3)
                self.assertEqual(run.returncode, 2, run.stderr)
                (line,) = own_lines(run)
                self.assertIn(needle, line)


if __name__ == "__main__":
    serving.main()
