"""Reads tensors of a safetensors file, without numpy: enough for goldens."""

import array
import json
import math
import pathlib
import struct
import sys

_CODES = {"F32": "f", "I32": "i"}


class Tensors:
    def __init__(self, path: pathlib.Path):
        blob = path.read_bytes()
        (size,) = struct.unpack_from("<Q", blob)
        self._entries = json.loads(blob[8:8 + size])
        self._values = blob[8 + size:]
        assert sys.byteorder == "little", "the format is little-endian"

    def names(self) -> list[str]:
        return [name for name in self._entries if name != "__metadata__"]

    def shape(self, name: str) -> list[int]:
        return self._entries[name]["shape"]

    def values(self, name: str) -> list:
        """All elements, row-major; KeyError when there is no such tensor or its type is none of goldens."""
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        values = array.array(_CODES[entry["dtype"]])
        values.frombytes(self._values[begin:end])
        assert len(values) == math.prod(entry["shape"]), f"{name}: {len(values)} elements, shape {entry['shape']}"
        return values.tolist()

    def rows(self, name: str) -> list[list]:
        """A matrix as a list of rows."""
        columns, values = self.shape(name)[-1], self.values(name)
        return [values[i:i + columns] for i in range(0, len(values), columns)]
