"""moe_bench engine and transport as MPI jobs: one rank measures and speaks, the others answer, and the same work is done
as in one process."""

import json
import subprocess
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
                    self.assertEqual(result["distinct_experts"], expected["distinct_experts"])
                    self.assertAlmostEqual(result["bytes_per_token"] / expected["bytes_per_token"], 1)

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

    def test_one_rank_says_what_is_wrong_and_all_end(self):
        for flags, needle in ((("--rows", 0), "--rows 0"), (("--workers", 2), "--workers 2"),
                              (("--output", "/nonexistent/x"), "/nonexistent/x")):
            with self.subTest(flags=flags):
                run = bench("transport", *flags, ranks=3)
                self.assertEqual(run.returncode, 2, run.stderr)
                (line,) = own_lines(run)
                self.assertIn(needle, line)


if __name__ == "__main__":
    serving.main()
