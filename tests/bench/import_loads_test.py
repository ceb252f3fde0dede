#!/usr/bin/python3
"""bench/import_loads.py on files as SGLang, vLLM and torch.save write them, made here without any of them."""

import contextlib
import io
import json
import pathlib
import pickle
import struct
import sys
import tempfile
import types
import unittest
import unittest.mock
import zipfile

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "bench"))
import import_loads  # noqa: E402


class Storage:
    """Numbers of a tensor, which the pickle names and the zip holds."""

    def __init__(self, kind: str, key: str, values: list):
        self.kind, self.key, self.values = kind, key, values


class Tensor:

    def __init__(self, storage: Storage, size: tuple, stride: tuple, offset: int = 0):
        self.arguments = (storage, offset, size, stride, False, {})

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Writer(pickle.Pickler):

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return "storage", getattr(sys.modules["torch"], obj.kind), obj.key, "cpu", len(obj.values)
        return None


def fake_torch() -> dict[str, types.ModuleType]:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("LongStorage", "IntStorage", "HalfStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    def _rebuild_tensor_v2(*_):
        pass
    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    return {"torch": torch, "torch._utils": utils}


def torch_save(path: pathlib.Path, content, storages: list[Storage]) -> None:
    text = io.BytesIO()
    with unittest.mock.patch.dict(sys.modules, fake_torch()):
        Writer(text, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text.getvalue())
        archive.writestr("archive/byteorder", sys.byteorder)
        for storage in storages:
            code = {"LongStorage": "q", "IntStorage": "i", "HalfStorage": "h"}[storage.kind]
            archive.writestr(f"archive/data/{storage.key}", struct.pack(f"{len(storage.values)}{code}", *storage.values))


class ImportLoadsTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_main(self, *arguments) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with unittest.mock.patch.object(sys, "argv", ["import_loads.py", *map(str, arguments)]), \
                contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = import_loads.main()
        return code, out.getvalue(), err.getvalue()

    def layers(self, *arguments) -> list[list[int]]:
        code, out, err = self.run_main(*arguments)
        self.assertEqual(code, 0, err)
        return json.loads(out)["layers"]

    def json_file(self, content, name="loads.json") -> pathlib.Path:
        path = self.folder / name
        path.write_text(json.dumps(content))
        return path

    def test_sglang_stat_sums_passes_and_leaves_dense_layers_out(self):
        values = list(range(12))  # (2 passes, 3 layers, 2 experts); the second layer is dense
        values[2:4] = values[8:10] = [0, 0]
        storage = Storage("IntStorage", "0", values)
        path = self.folder / "expert_distribution_recorder_1.pt"
        torch_save(path, {"rank": 0, "logical_count": Tensor(storage, (2, 3, 2), (6, 2, 1)),
                          "average_utilization_rate_over_window": None}, [storage])
        code, out, err = self.run_main(path)
        self.assertEqual(code, 0, err)
        self.assertEqual(json.loads(out), {"layers": [[6, 8], [14, 16]]})
        self.assertIn("1 of 3 layers have no tokens", err)
        self.assertEqual(self.layers(path, "--keep-empty-layers"), [[6, 8], [0, 0], [14, 16]])

    def test_each_file_can_be_a_sample(self):
        paths = []
        for i, counts in enumerate(([[1, 2], [0, 0]], [[3, 4], [0, 0]])):
            paths.append(self.folder / f"{i}.json")
            paths[-1].write_text(json.dumps({"expert_load_pass": counts}))
        code, out, err = self.run_main("--samples", *paths)
        self.assertEqual(code, 0, err)
        self.assertEqual(json.loads(out), {"layers": [[4, 6]], "samples": [[[1, 2]], [[3, 4]]]})

    def test_sglang_per_pass_sums_ranks_and_goes_by_the_map(self):
        paths = []
        for rank in (0, 1):
            counts, where = Storage("IntStorage", "0", [9, 1, 2, 4, 8]), Storage("LongStorage", "1", [0, 1, 2, 1])
            count = Tensor(counts, (1, 4), (4, 1), offset=1)
            paths.append(self.folder / f"expert_distribution_recorder_1_{rank}.pt")
            torch_save(paths[-1], {"records": [{"forward_pass_id": i, "rank": rank, "gatherer_key": "primary",
                                                "global_physical_count": count} for i in range(3)],
                                   "last_physical_to_logical_map": Tensor(where, (1, 4), (4, 1))}, [counts, where])
        self.assertEqual(self.layers(*paths), [[6, 60, 24]])

    def test_vllm_state_as_json(self):
        window = [[[1, 2, 3], [4, 5, 6]], [[1, 1, 1], [1, 1, 1]]]
        where = [[0, 1, 0], [1, 0, 1]]
        self.assertEqual(self.layers(self.json_file({"expert_load_window": window, "physical_to_logical_map": where})),
                         [[6, 3], [6, 12]])
        self.assertEqual(self.layers(self.json_file({"expert_load_pass": window[0]})), window[0])

    def test_what_it_does_not_know_is_refused_in_one_sentence(self):
        half = Storage("HalfStorage", "0", [1, 2])
        torch_save(self.folder / "half.pt", {"logical_count": Tensor(half, (1, 1, 2), (2, 2, 1))}, [half])
        (self.folder / "empty.pt").write_bytes(b"PK\5\6" + bytes(18))
        (self.folder / "text").write_text("nothing")
        short = Storage("IntStorage", "0", [1])
        tensor = Tensor(short, (1, 1, 2), (2, 2, 1))
        torch_save(self.folder / "short.pt", {"logical_count": tensor}, [short])
        for path, complaint in ((self.folder / "half.pt", "torch.HalfStorage is not among"),
                                (self.folder / "empty.pt", "empty.pt"), (self.folder / "text", "Expecting value"),
                                (self.folder / "short.pt", "index out of range"),
                                (self.json_file({"a": 1}, "a.json"), "none of logical_count"),
                                (self.json_file([], "b.json"), "not a dict"),
                                (self.json_file({"expert_load_pass": [[1.5]]}, "c.json"), "whole numbers"),
                                (self.json_file({"expert_load_pass": [[1, 2]], "physical_to_logical_map": [[0]]},
                                                "d.json"), "a map to 1 experts"),
                                (self.folder / "nowhere", "No such file")):
            with self.subTest(complaint):
                code, out, err = self.run_main(path)
                self.assertEqual((code, out), (1, ""))
                self.assertIn(complaint, err)
                self.assertEqual(err.count("\n"), 1, err)

    def test_a_pickle_runs_nothing(self):
        class Evil:
            def __reduce__(self):
                return print, ("ran",)
        torch_save(self.folder / "evil.pt", {"logical_count": Evil()}, [])
        code, out, err = self.run_main(self.folder / "evil.pt")
        self.assertEqual((code, out), (1, ""))
        self.assertIn("print is not among", err)


if __name__ == "__main__":
    unittest.main()
