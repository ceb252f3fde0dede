#!/usr/bin/python3
"""What moving experts costs a server under load: throughput with and without, in turns of one run.

  migration_cost.py                                     # the bundled model, mpirun -n 3, batch 32, 60 s each
  migration_cost.py --ranks 3 --seconds 10 --rounds 3
  migration_cost.py --model DIR --load-format dummy     # any shape that fits
  migration_cost.py --transport grpc --json

Starts moe_serve under mpirun and keeps --batch sequences running, each begun again as soon as it ends. In turns of
--seconds it leaves the experts alone, and moves one expert of each layer, or of --layers of them, to another worker (and
back) every --every seconds. Figures:
  tokens_per_s           generated tokens, of the turns without and with moves
  loss                   1 - with / without, of the means
  itl_p99_ms, itl_max_ms longest pauses between two tokens of a sequence, without and with
  moves, moved_experts, loaded_bytes
  wrong                  continuations that are not those of the first one of their prompt
Exit code: 0 when nothing was wrong, lost or refused, 1 otherwise, 2 bad usage."""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "bench"))

import grpc  # noqa: E402
from python_client import Client  # noqa: E402
from set_placement import await_placement, set_placement  # noqa: E402

START_S, CALL_S = 300.0, 600.0
PROMPT_TOKENS = 8


class Load:
    """`batch` sequences at a time, by as many threads, until the block is left."""

    def __init__(self, address: str, batch: int, tokens: int, vocab: int):
        self.address, self.tokens = address, tokens
        self.prompts = [[random.Random(i).randrange(vocab) for _ in range(PROMPT_TOKENS)] for i in range(batch)]
        self.expected: list[list[int] | None] = [None] * batch
        self.generated, self.wrong, self.failures = 0, 0, []
        self.pauses: list[float] = []
        self._lock, self._stop = threading.Lock(), False
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(batch)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self._stop = True
        for thread in self._threads:
            thread.join()

    def take(self) -> tuple[int, list[float]]:
        """Tokens and pauses since the last call."""
        with self._lock:
            taken = self.generated, self.pauses
            self.generated, self.pauses = 0, []
        return taken

    def _run(self, index: int) -> None:
        with Client(self.address, CALL_S) as client:
            pb = client.stubs.inference_pb2
            sequence = pb.TokenSequence(token_ids=self.prompts[index])
            request = pb.GenerateRequest(sequences=[sequence], max_new_tokens=self.tokens, ignore_eos=True)
            while not self._stop:
                try:
                    self._generate(client.inference.Generate(request, timeout=CALL_S), index)
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code().name}: {error.details()}")
                    return

    def _generate(self, events, index: int) -> None:
        token_ids: list[int] = []
        last = None
        for event in events:
            now = time.monotonic()
            with self._lock:
                self.generated += len(event.token_ids)
                if last is not None and event.token_ids:
                    self.pauses.append(now - last)
            last = now
            token_ids.extend(event.token_ids)
        if self.expected[index] is None:
            self.expected[index] = token_ids
        elif token_ids != self.expected[index]:
            self.wrong += 1


class Moves:
    """Moves one expert of each layer, or of a few in turns, from its worker to the next one, and then back."""

    def __init__(self, client, layers: int):
        self.layers = layers
        self.client, self.pb = client, client.stubs.cluster_pb2
        self.home = client.cluster.GetPlacement(self.pb.GetPlacementRequest(), timeout=CALL_S)
        self.count, self.failures = 0, []
        self.moved_experts = self.loaded_bytes = 0

    def step(self) -> None:
        placement = self.pb.Placement()
        placement.CopyFrom(self.home)
        if self.count % 2 == 0:
            turn = self.count // 2
            every = range(len(placement.layers))
            for index in [(turn + i) % len(every) for i in range(self.layers)] if self.layers else every:
                layer = placement.layers[index]
                source = turn % len(layer.workers)
                expert = layer.workers[source].experts[0]
                del layer.workers[source].experts[0]
                layer.workers[(source + 1) % len(layer.workers)].experts.append(expert)
        try:
            generation = set_placement(self.client, placement)
            state = await_placement(self.client, generation)
        except grpc.RpcError as error:
            self.failures.append(f"{error.code().name}: {error.details()}")
            return
        if state.placement_generation < generation:
            self.failures.append(state.migration.last_failure)
        self.count += 1
        self.moved_experts += state.migration.moved_experts
        self.loaded_bytes += state.migration.loaded_bytes


def measure(load: Load, moves: Moves | None, seconds: float, every: float) -> dict:
    load.take()
    begin = time.monotonic()
    due = begin
    while (now := time.monotonic()) < begin + seconds:
        if moves is not None and now >= due:
            moves.step()
            due += every
        time.sleep(max(0.0, min(due if moves else now + 0.1, begin + seconds) - time.monotonic()))
    tokens, pauses = load.take()
    elapsed = time.monotonic() - begin
    pauses.sort()
    return {"tokens_per_s": tokens / elapsed,
            "itl_p99_ms": 1e3 * pauses[int(0.99 * len(pauses))] if pauses else 0.0,
            "itl_max_ms": 1e3 * pauses[-1] if pauses else 0.0}


def run(arguments, address: str) -> dict:
    with Client(address, CALL_S) as client:
        vocab = client.get_model().vocab_size
        moves = Moves(client, arguments.layers)
        parts: dict[str, list[dict]] = {"without": [], "with": []}
        with Load(address, arguments.batch, arguments.tokens, vocab) as load:
            time.sleep(arguments.warmup)
            for _ in range(arguments.rounds):
                parts["without"].append(measure(load, None, arguments.seconds, arguments.every))
                parts["with"].append(measure(load, moves, arguments.seconds, arguments.every))
    mean = {name: {key: statistics.mean(part[key] for part in of) for key in of[0]} for name, of in parts.items()}
    return {"without": mean["without"], "with": mean["with"],
            "loss": 1 - mean["with"]["tokens_per_s"] / mean["without"]["tokens_per_s"],
            "turns": parts, "moves": moves.count, "moved_experts": moves.moved_experts,
            "loaded_bytes": moves.loaded_bytes, "wrong": load.wrong,
            "failures": load.failures + moves.failures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/moe_serve"))
    parser.add_argument("--model", default=str(ROOT / "models/eight-languages-moe"))
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="sequences at a time")
    parser.add_argument("--tokens", type=int, default=128, help="of each sequence")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=1, help="turns without and with moves, each")
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one move to the next")
    parser.add_argument("--layers", type=int, default=0, help="that an expert moves in at a time; 0: all")
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds before the first turn")
    parser.add_argument("--metrics-port", type=int, default=0, help="of the server, to be watched meanwhile; 0: any")
    parser.add_argument("--json", action="store_true")
    arguments, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="moe-migration-") as name:
        folder = pathlib.Path(name)
        ready = folder / "ready.json"
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        command = ["mpirun", "--oversubscribe", "--bind-to", "none", *root, "-n", str(arguments.ranks),
                   arguments.program, "--model", arguments.model, "--listen", "127.0.0.1:0", "--metrics-port", str(arguments.metrics_port),
                   "--max-sequences", str(max(64, arguments.batch)), "--ready-file", str(ready), *flags]
        with open(folder / "log", "wb") as log:
            job = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_S
            while not ready.exists():
                if job.poll() is not None or time.monotonic() > deadline:
                    print(f"migration_cost: the server did not start:\n{(folder / 'log').read_text()}", file=sys.stderr)
                    return 2
                time.sleep(0.05)
            serving = json.loads(ready.read_text())
            result = run(arguments, serving["grpc"])
        finally:
            job.terminate()
            job.wait()
    if arguments.json:
        print(json.dumps(result))
    else:
        for name in ("without", "with"):
            part = result[name]
            print(f"{name:8} {part['tokens_per_s']:9.1f} tokens/s, pauses: p99 {part['itl_p99_ms']:.1f} ms, longest "
                  f"{part['itl_max_ms']:.1f} ms")
        print(f"loss {100 * result['loss']:.1f} %, {result['moves']} moves, {result['moved_experts']} experts, "
              f"{result['loaded_bytes']} bytes, {result['wrong']} wrong, {len(result['failures'])} failures")
        for failure in result["failures"][:5]:
            print(failure, file=sys.stderr)
    return 1 if result["wrong"] or result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
