#!/usr/bin/env python3
"""Turns what other servers record of their routing into our loads, {"layers": [[tokens of expert 0, ...], ...]}, which
moe_plan placement and moe_serve take with --loads.

  bench/import_loads.py expert_distribution_recorder_1712.pt > loads.json            SGLang, mode stat
  bench/import_loads.py expert_distribution_recorder_1712_*.pt > loads.json          SGLang, mode per_pass, every rank's
  bench/import_loads.py expert_load.json > loads.json                                vLLM
  bench/import_loads.py trace.moetrace > loads.json                                  ours
  bench/import_loads.py --samples morning.moetrace evening.moetrace > loads.json     each file also as a sample

SGLang: the files of /dump_expert_distribution_record. `logical_count` (passes, layers, experts) is summed over passes;
of `records`, `global_physical_count` (layers, slots) goes to experts by `last_physical_to_logical_map` (layers, slots).

vLLM writes no file; its state, one object a model, has `expert_load_window` (passes, layers, slots) or
`expert_load_pass` (layers, slots), and `physical_to_logical_map` (layers, slots), summed over ranks. A JSON object or
torch.save of a dict with those names is read. Without a map, slots are experts.

Layers without a token are left out, because SGLang counts dense layers too; --keep-empty-layers keeps them."""

import argparse
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import read_trace
import torch_file


def add_up(tables):
    """The sum of tables of one shape."""
    total = None
    for table in tables:
        if total is None:
            total = [[0] * len(row) for row in table]
        if [len(row) for row in table] != [len(row) for row in total]:
            raise ValueError("its tables have different shapes")
        for row, more in zip(total, table):
            row[:] = [a + b for a, b in zip(row, more)]
    if not total:
        raise ValueError("it has no counts")
    return total


def to_experts(slots, slot_experts):
    """Counts (layers, slots) by expert."""
    if len(slots) != len(slot_experts):
        raise ValueError(f"it has counts of {len(slots)} layers and a map of {len(slot_experts)}")
    experts = 1 + max(max(row) for row in slot_experts)
    layers = [[0] * experts for _ in slots]
    for layer, counts, ids in zip(layers, slots, slot_experts):
        if len(counts) != len(ids) or min(ids) < 0:
            raise ValueError(f"a layer has {len(counts)} counts, and a map to {len(ids)} experts")
        for count, expert in zip(counts, ids):
            layer[expert] += count
    return layers


def loads_of(data):
    """Of one file's content."""
    if not isinstance(data, dict):
        raise ValueError("it is not a dict")
    if "layers" in data and "header" in data:
        return data["layers"]
    if "logical_count" in data:
        count = data["logical_count"]
        return add_up(count if isinstance(count[0][0], list) else [count])
    if "records" in data:
        counts = add_up(record["global_physical_count"] for record in data["records"])
        return to_experts(counts, data["last_physical_to_logical_map"])
    for name in ("expert_load_window", "expert_load_pass"):
        if name in data:
            counts = add_up(data[name] if name == "expert_load_window" else [data[name]])
            return to_experts(counts, data["physical_to_logical_map"]) if "physical_to_logical_map" in data else counts
    raise ValueError("it has none of logical_count, records, expert_load_window and expert_load_pass")


def read(path):
    with open(path, "rb") as file:
        begin = file.read(8)
    if begin == b"MOETRACE":
        return read_trace.loads(path)
    if begin.startswith(b"PK"):
        return torch_file.load(path)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="summed up")
    parser.add_argument("--keep-empty-layers", action="store_true")
    parser.add_argument("--samples", action="store_true", help="each file also as a sample, for the spread of the load")
    arguments = parser.parse_args()
    tables = []
    for path in arguments.files:
        try:
            tables.append(loads_of(read(path)))
        except (OSError, ValueError, TypeError, IndexError, KeyError) as error:
            print(f"import_loads: {path}: {error}", file=sys.stderr)
            return 1
    try:
        layers = add_up(tables)
    except ValueError as error:
        print(f"import_loads: the files together: {error}", file=sys.stderr)
        return 1
    if any(not float(count).is_integer() or count < 0 for row in layers for count in row):
        print("import_loads: counts that are no whole numbers", file=sys.stderr)
        return 1
    kept = [arguments.keep_empty_layers or any(row) for row in layers]
    if not all(kept):
        print(f"import_loads: {kept.count(False)} of {len(layers)} layers have no tokens and are left out",
              file=sys.stderr)

    def whole(table):
        return [[int(count) for count in row] for row, keep in zip(table, kept) if keep]

    samples = {"samples": [whole(table) for table in tables]} if arguments.samples else {}
    print(json.dumps({"layers": whole(layers)} | samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
