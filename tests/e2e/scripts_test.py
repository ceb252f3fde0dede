"""The scripts that a user runs first, to their end: the right words, the right exit code, nothing left behind."""

import json
import pathlib
import re
import signal
import subprocess
import tempfile
import unittest

import serving


def run_script(arguments: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=serving.ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, env=serving.clean_environment(**environment))


class ScriptTest(serving.ServingTest):

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moe-scripts-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def assert_nothing_left(self, marker: str) -> None:
        serving.wait_until(lambda: not serving.processes_of(marker), "processes that outlive the script")


    def interrupt(self, arguments: list[str], marker: str, **environment: str) -> int:
        """SIGTERM to the script once it has started ranks; its exit code. Nothing that it started may stay."""
        process = subprocess.Popen(arguments, cwd=serving.ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, env=serving.clean_environment(**environment))
        try:
            def ranks() -> int:
                return sum("/moe_serve --model" in command for command in serving.processes_of(marker).values())
            serving.wait_until(lambda: ranks() > 2, "a server that is not started", serving.START_SECONDS)
            process.send_signal(signal.SIGTERM)
            code = process.wait(serving.EXIT_SECONDS)
            self.assert_nothing_left(marker)
            return code
        finally:
            process.kill()
            process.wait()
            serving.kill_all(marker)


@unittest.skipUnless(serving.BIN_DIR == serving.ROOT / "build/release/bin", "the quickstart uses build/release")
class QuickstartTest(ScriptTest):

    def quickstart(self, **environment: str) -> subprocess.CompletedProcess:
        run = run_script(["scripts/quickstart.sh"], TMPDIR=str(self.folder), **environment)
        self.assert_nothing_left(str(self.folder))
        self.assertEqual(list(self.folder.iterdir()), [])
        return run

    def test_all_answers_are_right(self):
        run = self.quickstart()
        self.assertEqual(run.returncode, 0, run.stdout)
        right, tasks = map(int, re.search(r"(\d+) of (\d+) answers are right", run.stdout).groups())
        self.assertEqual(right, tasks, run.stdout)
        self.assertGreaterEqual(tasks, 8)
        for words in ("all 8 processes ended with status 0", "3,413,120", "1,053,824", "/metrics", "Try next"):
            self.assertIn(words, run.stdout)

    def test_another_number_of_ranks_and_model(self):
        run = self.quickstart(MOE_RANKS="2", MOE_MODEL=str(serving.MODELS / "eight-languages-dense"))
        self.assertEqual(run.returncode, 0, run.stdout)
        self.assertIn("all 2 processes ended with status 0", run.stdout)

    def test_a_model_that_is_not_there(self):
        run = self.quickstart(MOE_MODEL="models/absent-model-7f")
        self.assertEqual(run.returncode, 1, run.stdout)
        self.assertIn("absent-model-7f", run.stdout)

    def test_interrupted(self):
        self.assertEqual(self.interrupt(["scripts/quickstart.sh"], str(self.folder), TMPDIR=str(self.folder)), 143)
        self.assertEqual(list(self.folder.iterdir()), [])


class ClusterLoadTest(ScriptTest):
    """bench/cluster_load_test.sh with a small load."""

    LOAD = ("--num-requests 30 --request-rate 30 --warmup 2 --input-len 8:32 --output-len 4:16 "
            "--text models/held-out.txt")

    def setUp(self):
        super().setUp()
        self.output = self.folder / "result"

    def command(self) -> list[str]:
        return ["bench/cluster_load_test.sh", "--server-binary", str(serving.BIN_DIR), "--output", str(self.output)]

    def run_load(self, *arguments) -> tuple[subprocess.CompletedProcess, pathlib.Path]:
        run = run_script([*self.command(), *arguments])
        self.assert_nothing_left(str(self.output))
        return run, self.output

    def test_every_count_agrees(self):
        run, output = self.run_load("--ranks", "3", "--load-args", self.LOAD)
        self.assertEqual(run.returncode, 0, run.stdout)
        for name in ("result.json", "table.txt", "load.json", "metrics.txt", "server.log", "prometheus.yml"):
            self.assertGreater((output / name).stat().st_size, 0, name)
        load = json.loads((output / "load.json").read_text())
        self.assertEqual((load["results"]["completed"], load["results"]["failed"]), (30, 0))
        self.assertEqual(json.loads((output / "result.json").read_text())["schema"], 1)

    def test_requests_that_fail_are_not_overlooked(self):
        # Prompts beyond the context are refused.
        load = "--num-requests 3 --request-rate inf --input-len 600 --output-len 4 --random"
        run, _ = self.run_load("--ranks", "1", "--load-args", load)
        self.assertEqual(run.returncode, 1, run.stdout)

    def test_interrupted(self):
        self.assertEqual(self.interrupt([*self.command(), "--ranks", "3"], str(self.output)), 143)

    def test_a_server_that_does_not_start_ends_it(self):
        run, _ = self.run_load("--ranks", "3", "--model", str(self.folder / "absent-model-7f"))
        self.assertEqual(run.returncode, 1, run.stdout)
        self.assertIn("absent-model-7f", run.stdout)


if __name__ == "__main__":
    serving.main()
