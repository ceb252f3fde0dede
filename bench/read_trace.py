#!/usr/bin/env python3
"""Reads routing traces (docs/trace-format.md): `bench/read_trace.py FILE` prints the header and the loads as JSON."""

import json
import struct
import sys
import zlib


def read_trace(file):
    """Yields the header (a dict), then (step, nanoseconds, generation, layers) for each whole step: for each sparse
    layer (ids, weights), flat, experts_per_token for each row. Ends where the file does, even inside a record."""
    prefix = file.read(16)
    magic, version, length = struct.unpack("<8sII", prefix)
    text, checksum = file.read(length), file.read(4)
    if magic != b"MOETRACE" or version != 1 or struct.pack("<I", zlib.crc32(prefix + text)) != checksum:
        raise ValueError("not a routing trace of version 1")
    header = json.loads(text)
    yield header
    while len(frame := file.read(12)) == 12:
        kind, length, checksum = struct.unpack("<III", frame)
        payload = file.read(length)
        if len(payload) < length or kind == 2:  # it breaks off, or says that it ends
            return
        if kind != 1 or zlib.crc32(payload, zlib.crc32(frame[:8])) != checksum:
            raise ValueError(f"a record of kind {kind} is damaged")
        step, nanoseconds, generation, encoder_rows, decoder_rows = struct.unpack_from("<QQQII", payload)
        layers, at = [], 32
        for index in range(len(header["layers"])):
            pairs = (encoder_rows if index < header["encoder_layers"] else decoder_rows) * header["experts_per_token"]
            layers.append((struct.unpack_from(f"<{pairs}H", payload, at),
                           struct.unpack_from(f"<{pairs}f", payload, at + 2 * pairs)))
            at += 6 * pairs
        yield step, nanoseconds, generation, layers


def loads(path):
    """What a trace comes to: its header, how many steps it has, and each layer's tokens by expert."""
    with open(path, "rb") as file:
        records = read_trace(file)
        header = next(records)
        layers = [[0] * header["num_experts"] for _ in header["layers"]]
        steps = 0
        for steps, (_, _, _, choices) in enumerate(records, 1):
            for load, (ids, weights) in zip(layers, choices):
                for expert, weight in zip(ids, weights):
                    load[expert] += weight != 0  # a token over an expert's capacity went nowhere
    return {"header": header, "steps": steps, "layers": layers}


if __name__ == "__main__":
    print(json.dumps(loads(sys.argv[1])))
