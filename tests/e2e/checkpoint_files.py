"""Copies of a checkpoint with something wrong."""

import json
import os
import pathlib
import shutil
import struct

WEIGHTS = "model.safetensors"


class Checkpoint:
    """A copy of a checkpoint's files, to be broken. The weights are shared until they are written."""

    def __init__(self, folder: pathlib.Path, original: pathlib.Path):
        self.folder = folder
        folder.mkdir()
        for name in ("config.json", "generation_config.json"):
            if (original / name).exists():
                shutil.copy(original / name, folder)
        os.symlink(original / WEIGHTS, folder / WEIGHTS)

    # config.json

    def change_config(self, **values) -> "Checkpoint":
        """Sets keys; None removes one."""
        path = self.folder / "config.json"
        config = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        return self

    def write(self, name: str, text: str) -> "Checkpoint":
        self.remove(name)
        (self.folder / name).write_text(text)
        return self

    def remove(self, name: str) -> "Checkpoint":
        (self.folder / name).unlink(missing_ok=True)
        return self

    # model.safetensors: 8 bytes of header length, the header as JSON, the values

    def change_bytes(self, change) -> "Checkpoint":
        path = self.folder / WEIGHTS
        blob = change(path.read_bytes())
        path.unlink()
        path.write_bytes(blob)
        return self

    def change_header(self, change) -> "Checkpoint":
        """change(header) edits the table of tensors in place; the values stay as they are."""
        return self.change_bytes(lambda blob: _with_header(blob, change))

    def change_tensor(self, name: str, **fields) -> "Checkpoint":
        return self.change_header(lambda header: header[name].update(fields))

    def remove_tensor(self, name: str) -> "Checkpoint":
        """As if it had never been stored: the others follow each other without a gap."""
        return self.change_bytes(lambda blob: _without_tensor(blob, name))

    def rename_tensor(self, name: str, new_name: str) -> "Checkpoint":
        return self.change_header(lambda header: header.update({new_name: header.pop(name)}))

    def add_tensor(self, name: str, dtype: str, shape: list[int], values: bytes) -> "Checkpoint":
        return self.change_bytes(lambda blob: _with_tensor(blob, name, dtype, shape, values))

    def tensor(self, name: str) -> dict:
        header, _ = _split((self.folder / WEIGHTS).read_bytes())
        return header[name]

    def shard(self, **weight_map: str) -> "Checkpoint":
        """An index in place of the single file."""
        (self.folder / WEIGHTS).rename(self.folder / "model-00001-of-00002.safetensors")
        return self.write("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": weight_map}))


def _split(blob: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack_from("<Q", blob)
    return json.loads(blob[8:8 + size]), blob[8 + size:]


def _join(header: dict, values: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + values


def _with_header(blob: bytes, change) -> bytes:
    header, values = _split(blob)
    change(header)
    return _join(header, values)


def _with_tensor(blob: bytes, name: str, dtype: str, shape: list[int], added: bytes) -> bytes:
    header, values = _split(blob)
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(values), len(values) + len(added)]}
    return _join(header, values + added)


def _without_tensor(blob: bytes, removed: str) -> bytes:
    header, values = _split(blob)
    del header[removed]
    packed = bytearray()
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    for entry in sorted(entries, key=lambda entry: entry["data_offsets"][0]):
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = [len(packed), len(packed) + end - begin]
        packed += values[begin:end]
    return _join(header, bytes(packed))
