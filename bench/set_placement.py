#!/usr/bin/python3
"""Moves a running server's experts to a placement, and waits until they are there.

  moe_plan placement --loads loads.json --workers 7 --slots 12 --output new.json
  set_placement.py new.json --server 127.0.0.1:50051

Exit code: 0 in force, 1 refused or failed (the reason on stderr; the placement before stays in force), 2 bad usage."""

import argparse
import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import grpc  # noqa: E402
from python_client import Client  # noqa: E402

CALL_S = 60.0
POLL_S = 0.05


def read_placement(pb, path):
    """A placement file (docs/placement-format.md) as a message."""
    with open(path, encoding="utf-8") as file:
        placed = json.load(file)
    message = pb.Placement(num_experts=placed["num_experts"], workers=placed["workers"])
    for layer in placed["layers"]:
        slots = [pb.WorkerSlots(experts=experts) for experts in layer["slots"]]
        message.layers.add(layer=layer["layer"], workers=slots)
    return message


def set_placement(client, placement) -> int:
    """Begins to move; the generation that the placement will have. grpc.RpcError when it is refused."""
    pb = client.stubs.cluster_pb2
    return client.cluster.SetPlacement(pb.SetPlacementRequest(placement=placement), timeout=CALL_S).generation


def await_placement(client, generation: int):
    """The state of the migration once that generation's has ended: in force, or failed."""
    pb = client.stubs.cluster_pb2
    while True:
        state = client.cluster.GetCluster(pb.GetClusterRequest(), timeout=CALL_S)
        migration = state.migration
        if migration.generation >= generation and migration.phase == pb.MIGRATION_PHASE_IDLE:
            return state
        time.sleep(POLL_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="placement file")
    parser.add_argument("--server", default="127.0.0.1:50051", help="HOST:PORT (default %(default)s)")
    arguments = parser.parse_args()
    with Client(arguments.server, CALL_S) as client:
        try:
            placement = read_placement(client.stubs.cluster_pb2, arguments.file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"set_placement: {arguments.file} is no placement file: {error!r}", file=sys.stderr)
            return 2
        try:
            generation = set_placement(client, placement)
            state = await_placement(client, generation)
        except grpc.RpcError as error:
            print(f"set_placement: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    if state.placement_generation < generation:
        print(f"set_placement: {state.migration.last_failure}", file=sys.stderr)
        return 1
    print(f"placement generation {generation} is in force: {state.migration.moved_experts} experts moved, "
          f"{state.migration.loaded_bytes} bytes loaded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
