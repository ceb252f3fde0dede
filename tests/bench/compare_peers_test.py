#!/usr/bin/python3
"""bench/compare_peers.py with stand-ins for moe_bench and a peer's programs."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
FAKE = SOURCE / "tests/bench/fake_peer_programs.py"
PEER_PROGRAMS = ("llama-bench", "llama-server", "llama-batched-bench")
CONFIG = {"model_type": "olmoe", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 64, "num_experts_per_tok": 8,
          "vocab_size": 600, "max_position_embeddings": 128, "rope_theta": 10000.0, "rms_norm_eps": 1e-5}


class ComparePeersTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moe-peers-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.log = self.folder / "log"
        self.log.touch()
        self.model = self.folder / "shape"
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps(CONFIG))
        self.install("none")

    def install(self, fault: str, programs=PEER_PROGRAMS, folder: str = "peer/bin") -> None:
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for path in [self.folder / "moe_bench"] + [self.folder / folder / program for program in programs]:
            path.write_text(f"#!/bin/sh\nexec /usr/bin/python3 -B '{FAKE}' {path.name} {fault} '{self.log}' \"$@\"\n")
            path.chmod(0o755)

    def run_script(self, *arguments, peer: bool = True, path: str = "/usr/bin:/bin", where: pathlib.Path | None = None) -> subprocess.CompletedProcess:
        command = [SOURCE / "bench/compare_peers.py", "--model", self.model, "--moe-bench", self.folder / "moe_bench",
                   "--rounds", 1, "--generate", 8, "--prompt-length", 16, "--batches", "1,4"]
        if peer:
            command += ["--peer", f"fake.cpp={self.folder / 'peer'}", "--make-gguf", self.folder / "model.gguf"]
        return subprocess.run(list(map(str, [*command, *arguments])), capture_output=True, text=True, check=False,
                              timeout=120, cwd=where, env=os.environ | {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"})

    def measured(self, *arguments, exit_code: int = 0, **more) -> dict:
        run = self.run_script("--json", *arguments, **more)
        self.assertEqual(run.returncode, exit_code, run.stdout + run.stderr)
        return json.loads(run.stdout)

    def started(self) -> list[str]:
        return [line.split()[0] for line in self.log.read_text().splitlines()]

    def rows(self, result: dict) -> dict:
        return {(row["test"], row["batch"], row["program"]): row for row in result["results"]["rows"]}

    def test_every_program_is_set_beside_this_engine(self):
        result = self.measured()
        self.assertEqual((result["schema"], result["kind"], result["host"]["cpu"], result["build"]["compiler"]),
                         (1, "compare_peers", "Fake CPU", "none"))
        self.assertEqual(set(result), {"schema", "kind", "when", "host", "build", "config", "results"})
        self.assertEqual(result["results"]["problems"], [])
        rows = self.rows(result)
        expected = {("pp16", 1, "llama-bench"): 2, ("tg8", 1, "llama-bench"): 2, ("tg8", 1, "llama-server"): 5,
                    ("tg8", 4, "llama-server"): 5, ("tg8", 1, "llama-batched-bench"): 1.25,
                    ("tg8", 4, "llama-batched-bench"): 1.25}
        self.assertEqual({key: row["ratio"] for key, row in rows.items() if "ratio" in row}, expected)
        self.assertEqual({key for key, row in rows.items() if "ratio" not in row},
                         {("pp16", 1, "moe_bench"), ("tg8", 1, "moe_bench"), ("tg8", 4, "moe_bench")})
        self.assertEqual(rows["tg8", 4, "llama-server"]["tokens_per_s"], 80)
        self.assertEqual(rows["tg8", 4, "llama-server"]["distinct_texts"], 4)

    def test_experts_are_given_with_how_they_are_known(self):
        rows = self.rows(self.measured())
        self.assertEqual({key: (round(row["distinct_experts"], 2), row["distinct_experts_are"], row["upper_bound"])
                          for key, row in rows.items() if key[0] == "tg8"}, {
            ("tg8", 1, "moe_bench"): (7.5, "counted", False), ("tg8", 4, "moe_bench"): (7.5, "counted", False),
            ("tg8", 1, "llama-bench"): (8, "one token", False), ("tg8", 1, "llama-server"): (8, "one token", False),
            ("tg8", 4, "llama-server"): (26.48, "expected", False),  # 64 (1 - (7/8)^4)
            ("tg8", 1, "llama-batched-bench"): (8, "one token", False),
            ("tg8", 4, "llama-batched-bench"): (8, "one token", True)})

    def test_both_sides_take_turns(self):
        self.measured("--rounds", 2)
        one_round = ["moe_bench", "llama-bench", "moe_bench", "llama-server", "llama-batched-bench"]
        self.assertEqual(self.started(), one_round * 2)

    def test_medians_and_spreads_are_over_all_rounds(self):
        row = self.rows(self.measured("--rounds", 3, "--repetitions", 2))["tg8", 4, "moe_bench"]
        self.assertEqual(row["repetitions"], [400, 400, 400, 400, 200, 200])
        self.assertEqual([row[key] for key in ("tokens_per_s", "tokens_per_s_min", "tokens_per_s_max")], [400, 200, 400])
        peer = self.rows(self.measured("--rounds", 3))["tg8", 4, "llama-server"]
        self.assertEqual((peer["ratio"], peer["ratio_min"], peer["ratio_max"]), (5, 5, 5))

    def test_shares_of_the_roofs_are_medians_over_the_rounds(self):
        row = self.rows(self.measured("--rounds", 3))["tg8", 4, "moe_bench"]
        self.assertEqual((row["s_mbu"], row["s_mfu"]), (0.5, 0.25))  # of 0.5, 0.5 and 0.25; 0.25, 0.25 and 0.125
        self.install("moe_bench-knows-no-peak-once")
        self.log.write_text("")
        row = self.rows(self.measured("--rounds", 3))["tg8", 4, "moe_bench"]
        self.assertEqual((row["s_mbu"], row["s_mfu"]), (0.5, None))

    def test_ratios_of_rounds_show_a_slow_round(self):
        row = self.rows(self.measured("--rounds", 3))["pp16", 1, "llama-bench"]
        self.assertEqual((row["ratio"], row["ratio_min"], row["ratio_max"]), (2, 1, 2))

    def test_the_table_marks_upper_bounds_and_names_options(self):
        run = self.run_script("--bench-options", "-thp 1", "--server-options=--no-warmup")
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        lines = run.stdout.splitlines()
        self.assertIn("Fake CPU, 2 cores, avx2; reads 20.0 GB/s", lines[0])
        (bound,) = [line for line in lines if line.endswith("upper bound")]
        self.assertRegex(bound, r"^tg8 +4  fake.cpp llama-batched-bench +320.00 .* !8.0 +1.25 ")
        (ours,) = [line for line in lines if line.startswith("pp16") and "moe_bench" in line]
        self.assertRegex(ours, r" =7.5 +50.0% +25.0%$")
        self.assertIn("fake.cpp llama-bench: -rtr 1 -fmoe 1 -fa 1 -thp 1", lines)
        self.assertIn("fake.cpp llama-server: -rtr -fa on -cram 0 --no-warmup", lines)
        self.assertIn("fake.cpp llama-batched-bench: -rtr -fa on", lines)

    def test_both_sides_get_the_same_work(self):
        self.measured("--threads", 3, "--weight-type", "int4", "--moe-options", "--kv-type bf16")
        commands = dict(line.split(maxsplit=1) for line in self.log.read_text().splitlines())
        self.assertIn("--weight-type int4 --threads 3 -p 0 -n 8 -b 1,4 -r 1 --json --kv-type bf16", commands["moe_bench"])
        self.assertIn("-t 3 -p 16 -n 8 -r 1", commands["llama-bench"])
        self.assertIn("-t 3", commands["llama-server"])
        self.assertIn("-np 4", commands["llama-server"])
        self.assertIn("-npp 1 -ntg 8 -npl 1,4", commands["llama-batched-bench"])

    def test_a_peer_that_fails_is_named_and_the_rest_is_measured(self):
        for fault, complaint, missing in (
                ("bench-fails", "llama-bench ended with 1: llama-bench: no memory for the model", "llama-bench"),
                ("bench-babbles", "llama-bench did not print its JSON", "llama-bench"),
                ("bench-misses-decode", "llama-bench printed no figure for tg8", "llama-bench"),
                ("bench-zero", "samples_ts is 0.0, not a positive number", "llama-bench"),
                ("batched-bench-fails", "llama-batched-bench ended with 1", "llama-batched-bench"),
                ("batched-bench-babbles", "llama-batched-bench printed no row for batch 1, 4", "llama-batched-bench"),
                ("batched-misses-a-row", "llama-batched-bench printed no row for batch 4", "llama-batched-bench"),
                ("server-does-not-start", "llama-server ended with 1: error: failed to load the model", "llama-server"),
                ("server-dies", "llama-server did not answer", "llama-server"),
                ("server-refuses", 'llama-server refused the sequences: 500 {"error": "out of slots"}', "llama-server"),
                ("server-stops-early", "llama-server generated 8 tokens where 9 were asked for", "llama-server"),
                ("server-drops-one", "llama-server answered 3 of 4 sequences", "llama-server")):
            with self.subTest(fault):
                self.install(fault)
                result = self.measured(exit_code=1)
                (problem,) = result["results"]["problems"]
                self.assertIn("round 1: fake.cpp: ", problem)
                self.assertIn(complaint, problem)
                measured = {row["program"] for row in result["results"]["rows"]}
                self.assertEqual(measured, {"moe_bench", *PEER_PROGRAMS} - {missing})

    def test_sequences_that_say_the_same_are_a_problem(self):
        self.install("server-same-text")
        (problem,) = self.measured(exit_code=1)["results"]["problems"]
        self.assertEqual(problem, "fake.cpp: only 0 of 4 sequences of llama-server had tokens of their own")

    def test_programs_that_hang_are_stopped(self):
        for fault, complaint in (("bench-hangs", "llama-bench was not done after 8 s"),
                                 ("server-hangs", "llama-server was not ready after 8 s")):
            with self.subTest(fault):
                self.install(fault)
                (problem,) = self.measured("--timeout", 8, exit_code=1)["results"]["problems"]
                self.assertIn(complaint, problem)

    def test_a_missing_program_is_a_problem(self):
        (self.folder / "peer/bin/llama-batched-bench").unlink()
        self.assertEqual(self.measured(exit_code=1)["results"]["problems"], ["fake.cpp has no llama-batched-bench"])

    def test_without_this_engine_there_is_nothing_to_compare(self):
        for fault, complaint in (("moe_bench-fails", "moe_bench ended with 1: moe_bench: no memory for the model"),
                                 ("moe_bench-babbles", "moe_bench did not print its JSON"),
                                 ("moe_bench-misses-a-batch", "other tests or figures than were asked for")):
            with self.subTest(fault):
                self.install(fault)
                run = self.run_script()
                self.assertEqual((run.returncode, run.stdout), (1, ""), run.stderr)
                self.assertIn(complaint, run.stderr)
                self.assertEqual(len(run.stderr.splitlines()), 1, run.stderr)

    def test_without_a_peer_the_shares_of_the_roofs_stand_in(self):
        run = self.run_script(peer=False)
        self.assertEqual(run.returncode, 1, run.stdout + run.stderr)
        self.assertIn("no peer was found", run.stderr)
        self.assertIn("PROBLEM: no peer was found", run.stdout)
        self.assertIn("50.0%   25.0%", run.stdout)
        asked_for = self.measured("--peer", "none", peer=False)
        self.assertEqual({row["program"] for row in asked_for["results"]["rows"]}, {"moe_bench"})
        self.assertEqual(asked_for["results"]["problems"], [])

    def test_a_peer_on_the_path_is_found(self):
        result = self.measured("--make-gguf", self.folder / "model.gguf", peer=False,
                               path=f"{self.folder / 'peer/bin'}:/usr/bin:/bin")
        self.assertEqual({row["engine"] for row in result["results"]["rows"]}, {"moe_bench", "llama.cpp"})

    def test_two_peers_are_told_apart(self):
        self.install("none", folder="other")
        result = self.measured("--peer", f"other.cpp={self.folder / 'other'}")
        self.assertEqual({row["engine"] for row in result["results"]["rows"]}, {"moe_bench", "fake.cpp", "other.cpp"})

    def test_the_model_is_made_once(self):
        self.measured()
        path = self.folder / "model.gguf"
        before = path.stat().st_mtime_ns
        self.assertEqual(path.read_bytes()[:4], b"GGUF")
        self.measured()
        self.assertEqual(path.stat().st_mtime_ns, before)

    def test_relative_paths_are_the_callers_and_nothing_is_left_there(self):
        here = self.folder / "here"
        here.mkdir()
        run = self.run_script("--peer", "fake.cpp=../peer", "--make-gguf", "model.gguf", "--moe-bench", "../moe_bench",
                              "--model", "../shape", peer=False, where=here)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertEqual([path.name for path in here.iterdir()], ["model.gguf"])

    def test_the_result_is_written_into_a_file(self):
        run = self.run_script("--output", self.folder / "result.json")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(json.loads((self.folder / "result.json").read_text())["config"]["batches"], "1,4")

    def test_bad_usage_is_exit_code_two(self):
        (self.folder / "other").mkdir()
        (self.folder / "other/config.json").write_text(json.dumps(CONFIG | {"model_type": "mixtral"}))
        for arguments, complaint in (
                (["--peer", f"x={self.folder}/nowhere"], "nowhere"), (["--peer", "x"], '--peer "x"'),
                (["--peer", f"fake.cpp={self.folder / 'peer'}"], "two engines have one name"),
                (["--gguf", "file"], "one of --gguf FILE and --make-gguf FILE"), (["--batches", "1,0"], "1,0"),
                (["--rounds", "0"], "at least 1"), (["--moe-bench", "/nonexistent"], "/nonexistent is not a program"),
                (["--model", self.folder / "other"], 'model_type "mixtral"'), (["--model", "/nonexistent"], "/nonexistent"),
                (["--nonsense"], "--nonsense"), (["--weight-type", "int3"], "int3")):
            with self.subTest(arguments=arguments):
                run = self.run_script(*arguments)
                self.assertEqual((run.returncode, run.stdout), (2, ""), run.stderr)
                self.assertIn(complaint, run.stderr.splitlines()[-1])


if __name__ == "__main__":
    unittest.main()
