"""Bad input on the command line, in the configuration and in the checkpoint: one sentence that names the thing and the
value, exit code 2 for bad usage and 1 for the rest, and nothing half-started. requests_test.py has what comes over
gRPC."""

import json
import pathlib
import re
import socket
import tempfile

import checkpoint_files
import serving

TENSOR = "model.layers.1.self_attn.q_proj.weight"
EXPERT = "model.layers.2.block_sparse_moe.experts.7.w2.weight"
ADDRESSES = ("--listen", "127.0.0.1:0", "--metrics-port", "0")
FAILED, BAD_USAGE = 1, 2
CRASH = re.compile(r"segmentation|terminate called|core dumped|assert|abort|exception|backtrace|check failed|signal \d",
                   re.IGNORECASE)


class BadInputTest(serving.ServingTest):

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="moe-bad-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.copies = 0

    def checkpoint(self) -> checkpoint_files.Checkpoint:
        self.copies += 1
        return checkpoint_files.Checkpoint(self.folder / f"copy-{self.copies}", serving.MOE)

    def assert_one_sentence(self, outcome: serving.Outcome, code: int, needles: tuple, ranks: int = 0) -> None:
        """Rank 0, or the only process, says it once; beside it only mpirun speaks."""
        self.assertEqual(outcome.exit_code, code, outcome.stderr)
        lines = outcome.own_lines() if ranks else outcome.stderr.splitlines()
        self.assertEqual(len(lines), 1, outcome.stderr)
        self.assertTrue(lines[0].startswith("moe_serve: "), lines[0])
        for needle in needles:
            self.assertIn(str(needle), lines[0])
        self.assertIsNone(CRASH.search(lines[0]), lines[0])
        self.assertNotIn("serving ", outcome.stderr)
        self.assertEqual(outcome.stdout, "")

    def refuse(self, flags, code: int, *needles, ranks: int = 0, **environment: str) -> None:
        with self.subTest(flags=" ".join(map(str, flags)), ranks=ranks, **environment):
            self.assert_one_sentence(serving.run(flags, ranks, **environment), code, needles, ranks)

    def refuse_checkpoint(self, checkpoint: checkpoint_files.Checkpoint, *needles, ranks: int = 0) -> None:
        self.refuse(["--model", checkpoint.folder, *ADDRESSES], FAILED, *needles, ranks=ranks)

    # The command line.

    def test_usage(self):
        good = ["--model", serving.MOE, *ADDRESSES]
        self.refuse(ADDRESSES, BAD_USAGE, "--model")
        for address in ("nonsense", "127.0.0.1", "127.0.0.1:99999", ":0", "::1:0"):
            self.refuse(["--model", serving.MOE, "--listen", address], BAD_USAGE, "--listen", f'"{address}"')
        for flag, value, *needles in (
                ("--frobnicate", "7", "--frobnicate"),
                ("--weight-type", "int3", "--weight-type", "int3", "bf16"),
                ("--weight-cache", "/proc/caches", "--weight-cache", "/proc/caches", "auto"),
                ("--weight-cache", serving.MOE / "config.json", "--weight-cache", "config.json", "off"),
                ("--kv-type", "f16", "--kv-type", "f16", "bf16"),
                ("--placement", "magic", "--placement", "magic", "round_robin", "auto"),
                ("--transport", "pigeon", "--transport", "pigeon", "mpi"),
                ("--backend", "tpu", "--backend", "tpu", "cpu"),
                ("--exchange-type", "f64", "--exchange-type", "f64"),
                ("--log-level", "loud", "--log-level", "loud"),
                ("--threads", "-1", "--threads", "-1"),
                ("--threads", "two", "--threads", "two"),
                ("--redundant-experts", "-4", "--redundant-experts", "-4"),
                ("--max-sequences", "0", "--max-sequences", "0"),
                ("--max-queued", "0", "--max-queued", "0"),
                ("--max-step-tokens", "1", "--max-step-tokens", "1"),
                ("--kv-tokens", "-5", "--kv-tokens", "-5"),
                ("--kv-tokens", str(2**64 - 1), "--kv-tokens", str(2**64 - 1)),
                ("--prefill-chunk", "-5", "--prefill-chunk", "-5"),
                ("--prefill-chunk", "x", "--prefill-chunk", "x"),
                ("--drain-timeout", "-1", "--drain-timeout", "-1"),
                ("--exchange-timeout", "soon", "--exchange-timeout", "soon"),
                ("--metrics-port", "70000", "--metrics-port", "70000"),
                ("--metrics-port", "some", "--metrics-port", "some"),
                ("--transport", "mpi", "--transport mpi", "two ranks"),
                ("--transport", "nccl", "--transport nccl", "two ranks")):
            self.refuse([*good, flag, value], BAD_USAGE, *needles)
        self.refuse([*good, "surplus"], BAD_USAGE, "surplus")

    def test_usage_is_said_once_by_all_ranks(self):
        good = ["--model", serving.MOE, *ADDRESSES]
        self.refuse([*good, "--frobnicate"], BAD_USAGE, "--frobnicate", ranks=4)
        self.refuse([*good, "--transport", "inprocess"], BAD_USAGE, "--transport inprocess", ranks=4)
        self.refuse([*good, "--transport", "mpi"], BAD_USAGE, "--transport mpi", "two ranks", ranks=1)

    def test_a_device_that_is_not_there(self):
        good = ["--model", serving.MOE, *ADDRESSES]
        for ranks in (0, 3):
            self.refuse([*good, "--backend", "cuda"], BAD_USAGE, "--backend cuda", "CUDA", ranks=ranks,
                        CUDA_VISIBLE_DEVICES="")
        self.refuse([*good, "--transport", "nccl"], BAD_USAGE, "--transport nccl", "CUDA", ranks=3,
                    CUDA_VISIBLE_DEVICES="")

    def test_configuration_file_and_environment(self):
        file = self.folder / "serve.toml"
        flags = ["--model", serving.MOE, *ADDRESSES, "--config", file]
        for text, *needles in (("frobnicate = 7\n", "frobnicate"), ('weight-type = "int3"\n', "--weight-type", "int3"),
                               ("max-sequences = 0\n", "--max-sequences", "0")):
            file.write_text(text)
            self.refuse(flags, BAD_USAGE, *needles)
        self.refuse([*flags[:-1], self.folder / "absent.toml"], BAD_USAGE, "absent.toml")
        self.refuse(flags[:-2], BAD_USAGE, "int3", MOE_WEIGHT_TYPE="int3")

    def test_addresses_that_cannot_be_used(self):
        model = ["--model", serving.MOE]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            for ranks in (0, 4):
                self.refuse([*model, "--listen", f"127.0.0.1:{port}", "--metrics-port", 0], FAILED, port, ranks=ranks)
                # Rank 1 takes the port after rank 0's.
                first = port - 1 if ranks else port
                self.refuse([*model, "--listen", "127.0.0.1:0", "--metrics-port", first], FAILED, port, ranks=ranks)
        self.refuse([*model, "--listen", "nowhere.invalid:0", "--metrics-port", 0], FAILED, "nowhere.invalid")
        self.refuse([*model, "--metrics-host", "nowhere.invalid", "--metrics-port", "auto"], FAILED, "nowhere.invalid")

    def test_a_taken_port_of_a_running_server(self):
        with serving.running(serving.MOE) as server:
            port = server.address.rsplit(":", 1)[1]
            self.refuse(["--model", serving.MOE, "--listen", server.address, "--metrics-port", 0], FAILED, port)
            self.assertEqual(len(server.generate([[1]], 5)[0].token_ids), 5)

    def test_other_files_and_sizes(self):
        good = ["--model", serving.MOE, *ADDRESSES]
        self.refuse([*good, "--kv-tokens", 10**12], FAILED, "--kv-tokens", 10**12)
        with tempfile.TemporaryDirectory(prefix="moe-e2e-") as folder:
            self.refuse([*good, "--ready-file", f"{folder}/absent/ready.json"], BAD_USAGE, "--ready-file")

    # Placement.

    def test_placement_files(self):
        slots = [[0, 1, 2], [3, 4, 5], [6, 7]]
        layers = [{"layer": i, "slots": slots} for i in range(4)]
        good = {"schema": 1, "num_experts": 8, "workers": 3, "layers": layers}

        def with_last(layer: int, last_slots: list) -> dict:
            return {**good, "layers": [*layers[:3], {"layer": layer, "slots": last_slots}]}

        file = self.folder / "placement.json"
        flags = ["--model", serving.MOE, *ADDRESSES, "--placement", file]
        for content, *needles in (
                ("{oops", "not JSON"),
                ({**good, "schema": 2}, "schema", 2),
                ({**good, "num_experts": 9}, "num_experts", 9, 8),
                ({**good, "workers": 2}, "workers", 2, 3),
                ({**good, "layers": layers[:3]}, "layer"),
                (with_last(9, slots), "layer 9"),
                (with_last(3, [[0, 1, 2], [3, 4, 5], [6]]), "layer 3", 7),
                (with_last(3, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]), "layer 3", 8),
                (with_last(3, [[0, 0, 1, 2], [3, 4, 5], [6, 7]]), "layer 3", 0)):
            file.write_text(content if isinstance(content, str) else json.dumps(content))
            self.refuse(flags, FAILED, "placement.json", *needles, ranks=4)
        file.write_text(json.dumps(good))
        self.refuse([*flags, "--redundant-experts", 2], FAILED, "--redundant-experts", 2, ranks=4)
        self.refuse(flags, FAILED, "placement.json", "workers", 3, 1)  # alone there is one worker
        plain = flags[:-2]
        self.refuse([*plain, "--placement", "eplb", "--redundant-experts", 2], FAILED, "10 slots", "3 workers", ranks=4)
        loads = file.with_name("loads.json")
        loads.write_text(json.dumps({"layers": [[1] * 7] * 4}))
        self.refuse([*plain, "--placement", "auto", "--loads", loads], FAILED, "loads.json", 7, 8, ranks=4)
        self.refuse([*plain, "--loads", loads], FAILED, "--loads", "linear", ranks=4)
        self.refuse([*flags[:-2], "--redundant-experts", 100], FAILED, "--redundant-experts", 100, ranks=3)

    # config.json.

    def test_configuration_of_the_model(self):
        for values, *needles in (
                (dict(model_type="frob"), "model_type", "frob"),
                (dict(model_type=None), "model_type"),
                (dict(hidden_act="tanhish"), "hidden_act", "tanhish"),
                (dict(rope_scaling={"rope_type": "frobbed", "factor": 2.0}), "frobbed"),
                (dict(hidden_size=None), "hidden_size"),
                (dict(hidden_size="128"), "hidden_size", "128"),
                (dict(hidden_size=-128), "hidden_size", "-128"),
                (dict(num_hidden_layers=2**40), "num_hidden_layers", 2**40),
                (dict(num_hidden_layers=0), "num_hidden_layers"),
                (dict(num_experts_per_tok=99), "num_experts_per_tok", 99),
                (dict(num_key_value_heads=3), "num_key_value_heads", 3),
                (dict(rms_norm_eps="small"), "rms_norm_eps"),
                (dict(hidden_size=64), "weight", 64, 128)):  # a tensor's name and both shapes
            self.refuse_checkpoint(self.checkpoint().change_config(**values), *needles)
        self.refuse_checkpoint(self.checkpoint().write("config.json", "{oops"), "config.json")
        self.refuse_checkpoint(self.checkpoint().write("config.json", "[1]"), "config.json")
        self.refuse_checkpoint(self.checkpoint().remove("config.json"), "config.json")

    def test_folders(self):
        empty = self.folder / "empty-model-3b"
        empty.mkdir()
        self.refuse(["--model", self.folder / "absent-model-7f", *ADDRESSES], FAILED, "absent-model-7f")
        self.refuse(["--model", empty, *ADDRESSES], FAILED, "empty-model-3b")
        self.refuse(["--model", self.folder / "absent-model-7f", *ADDRESSES], FAILED, "absent-model-7f", ranks=4)

    # model.safetensors.

    def test_tensors(self):
        entry = self.checkpoint().tensor(TENSOR)
        begin, end = entry["data_offsets"]
        rows, columns = entry["shape"]
        for fields, *needles in (
                (dict(shape=[columns, rows - 1]), ),
                (dict(shape=[rows // 2, columns * 2]), rows // 2),
                (dict(shape=[rows * columns]), ),
                (dict(shape=[2**33, 2**33]), ),
                (dict(shape=[-rows, columns]), ),
                (dict(dtype="Q7"), "Q7"),
                (dict(dtype="I16"), "I16"),
                (dict(data_offsets=[2**40, 2**40 + end - begin]), ),
                (dict(data_offsets=[end, begin]), ),
                (dict(data_offsets=[begin - 2, end - 2]), ),
                (dict(data_offsets=[2**64 - 2, 2**64 - 2 + end - begin]), )):
            self.refuse_checkpoint(self.checkpoint().change_tensor(TENSOR, **fields), TENSOR, *needles)
        self.refuse_checkpoint(self.checkpoint().remove_tensor(TENSOR), TENSOR)

    def test_weight_files(self):
        weights = checkpoint_files.WEIGHTS
        for change in (lambda blob: blob[:len(blob) // 2], lambda blob: blob[:5], lambda blob: b"",
                       lambda blob: (2**62).to_bytes(8, "little") + blob[8:], lambda blob: bytes(8) + blob[8:],
                       lambda blob: blob[:8] + b"x" * 16 + blob[24:]):
            self.refuse_checkpoint(self.checkpoint().change_bytes(change), weights)
        self.refuse_checkpoint(self.checkpoint().remove(weights), "safetensors")
        self.refuse_checkpoint(self.checkpoint().shard(**{TENSOR: "model-00002-of-00002.safetensors"}),
                               "model-00002-of-00002.safetensors")
        self.refuse_checkpoint(self.checkpoint().shard(**{TENSOR: "model-00001-of-00002.safetensors"}),
                               ".weight")  # a tensor that the index does not have
        index = "model.safetensors.index.json"
        self.refuse_checkpoint(self.checkpoint().remove(weights).write(index, "{oops"), index)
        self.refuse_checkpoint(self.checkpoint().remove(weights).write(index, '{"weight_map": 3}'), index)

    def test_a_job_that_cannot_load_says_so_once(self):
        self.refuse_checkpoint(self.checkpoint().remove_tensor(EXPERT), EXPERT, ranks=4)
        self.refuse_checkpoint(self.checkpoint().change_config(hidden_act="tanhish"), "tanhish", ranks=4)
        self.refuse_checkpoint(self.checkpoint().change_bytes(lambda blob: blob[:-100]), "safetensors", ranks=4)

    # Not bad: allowed, with a word.

    def test_ranks_without_experts_are_named(self):
        with serving.running(serving.MOE, 12) as server:
            expected = [list(result.token_ids) for result in server.generate([[1, 2, 3]], 8)]
            hosting = [rank.rank for rank in server.get_cluster().ranks if any(h.experts for h in rank.hosted)]
            idle = sorted(set(range(1, 12)) - set(hosting))
            self.assertEqual(len(idle), 3)
            self.assertEqual(server.log().count(", ".join(map(str, idle))), 1, server.log())
        with serving.running(serving.MOE) as server:
            self.assertEqual([list(result.token_ids) for result in server.generate([[1, 2, 3]], 8)], expected)


if __name__ == "__main__":
    serving.main()
