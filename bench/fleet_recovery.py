#!/usr/bin/python3
"""How long a fleet over gRPC is without service when a worker is killed, and when it is back.

  fleet_recovery.py                      # three workers, every expert twice: nothing may be lost
  fleet_recovery.py --no-replicas        # every expert once: requests in flight fail, then service resumes
  fleet_recovery.py --kills 5 --clients 8 --json

Starts workers and a router (moe_serve worker, moe_serve router) with the bundled model, keeps clients calling, kills one
worker after another with SIGKILL and starts each again on its port. Figures, of each kill:
  gap_s       longest pause between two tokens, of any clients, from the kill until the worker is up again
  resumed_s   without replicas: from the restarted worker's ready file to the first request that finishes
  up_s        from the restarted worker's ready file until GetCluster shows it up
  failed      requests that failed; each must name the rank
Exit code: 0 as asked (nothing lost or wrong where every expert has a replica), 1 otherwise, 2 bad usage."""

import argparse
import contextlib
import json
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import grpc  # noqa: E402
from python_client import Client  # noqa: E402

START_S = 60.0
CALL_S = 60.0
PROMPTS, PROMPT_TOKENS = 16, 12
BYTES = 256


class Process:
    """A part of the fleet, which may be killed and started again with the address that it had."""

    def __init__(self, program: pathlib.Path, role: str, folder: pathlib.Path, flags: list[str]):
        self.program, self.role, self.folder, self.flags = program, role, folder, flags
        self.address, self.process = "127.0.0.1:0", None
        folder.mkdir()

    def start(self) -> None:
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [self.program, self.role, "--listen", self.address, "--metrics-port", "0", "--ready-file", ready,
                   *self.flags]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"fleet_recovery: the {self.role} did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.002)
        self.address = json.loads(ready.read_text())["grpc"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(START_S)


class Callers:
    """Clients that call without a pause, and when what came."""

    def __init__(self, address: str, clients: int, tokens: int, expected: list[list[int]]):
        self.address, self.tokens, self.expected = address, tokens, expected
        self.token_times: list[float] = []
        self.finish_times: list[float] = []
        self.failures: list[str] = []
        self.wrong = 0
        self.stopping = False
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self.stopping = True
        for thread in self.threads:
            thread.join()

    def _run(self, number: int) -> None:
        with Client(self.address, CALL_S) as client:
            while not self.stopping:
                prompt = number % PROMPTS
                number += len(self.threads)
                try:
                    result = client.generate([prompts()[prompt]], max_new_tokens=self.tokens,
                                             on_tokens=lambda *_: self.token_times.append(time.monotonic()))[0]
                    self.finish_times.append(time.monotonic())
                    self.wrong += result.token_ids != self.expected[prompt]
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code().name}: {error.details()}")
                    time.sleep(0.005)  # a refusal comes at once


def prompts() -> list[list[int]]:
    return [[random.Random(n).randrange(BYTES) for _ in range(PROMPT_TOKENS)] for n in range(PROMPTS)]


def wait_until(condition, what: str) -> float:
    """When it became true."""
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"fleet_recovery: {what} did not happen within {START_S:.0f} s")
        time.sleep(0.002)
    return time.monotonic()


def longest_gap(times: list[float], begin: float, end: float) -> float:
    inside = [begin, *(t for t in times if begin < t < end), end]
    return max(b - a for a, b in zip(inside, inside[1:]))


def run_kill(number: int, workers: list[Process], callers: Callers, client: Client) -> dict:
    rank = 1 + number % len(workers)
    worker = workers[rank - 1]
    failed = len(callers.failures)
    time.sleep(0.5)
    killed = time.monotonic()
    worker.kill()
    time.sleep(1.0)  # what the fleet is like without it
    worker.start()
    back = time.monotonic()
    up = wait_until(lambda: client.get_cluster().ranks[rank].up, f"the return of rank {rank}")
    resumed = wait_until(lambda: callers.finish_times and callers.finish_times[-1] > back, "a request that finishes")
    first = min(t for t in callers.finish_times if t > back)
    time.sleep(0.2)
    names = [why for why in callers.failures[failed:] if f"rank {rank} " not in why]
    return {"rank": rank, "gap_s": longest_gap(callers.token_times, killed, max(up, resumed)), "resumed_s": first - back,
            "up_s": up - back, "failed": len(callers.failures) - failed, "failed_without_the_rank": names}


def run(options: argparse.Namespace, folder: pathlib.Path) -> int:
    model = ["--model", options.model]
    workers = [Process(options.moe_serve, "worker", folder / f"worker{n}", [*model, "--threads", "1"])
               for n in range(options.workers)]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.stop)
            worker.start()
        flags = [*model, "--threads", "1", "--workers", ",".join(worker.address for worker in workers)]
        if not options.no_replicas:
            flags += ["--redundant-experts", str(options.experts)]
        router = Process(options.moe_serve, "router", folder / "router", flags)
        stack.callback(router.stop)
        router.start()
        client = stack.enter_context(Client(router.address, CALL_S))
        expected = [r.token_ids for r in client.generate(prompts(), max_new_tokens=options.tokens)]
        with Callers(router.address, options.clients, options.tokens, expected) as callers:
            kills = [run_kill(n, workers, callers, client) for n in range(options.kills)]
    good = callers.wrong == 0 and not any(kill["failed_without_the_rank"] for kill in kills)
    if not options.no_replicas:
        good = good and not callers.failures
    report(options, kills, callers)
    return 0 if good else 1


def report(options: argparse.Namespace, kills: list[dict], callers: Callers) -> None:
    summary = {"finished": len(callers.finish_times), "wrong": callers.wrong, "failed": len(callers.failures),
               "median_gap_s": statistics.median(kill["gap_s"] for kill in kills),
               "largest_gap_s": max(kill["gap_s"] for kill in kills),
               "median_resumed_s": statistics.median(kill["resumed_s"] for kill in kills),
               "largest_resumed_s": max(kill["resumed_s"] for kill in kills)}
    if options.json:
        print(json.dumps({"workers": options.workers, "replicas": not options.no_replicas, "kills": kills, **summary}))
        return
    print("rank  longest gap, s  resumed, s   up, s  failed")
    for kill in kills:
        print(f"{kill['rank']:4}  {kill['gap_s']:14.3f}  {kill['resumed_s']:10.3f}  {kill['up_s']:6.3f}  {kill['failed']:6}")
    print(f"{summary['finished']} requests finished, {summary['wrong']} wrong, {summary['failed']} failed")
    for why in sorted(set(callers.failures))[:3]:
        print(f"  {why}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moe-serve", type=pathlib.Path, default=ROOT / "build/release/bin/moe_serve", metavar="FILE")
    parser.add_argument("--model", default=ROOT / "models/eight-languages-moe", metavar="DIR")
    parser.add_argument("--experts", type=int, default=8, help="of the model, so many redundant ones (%(default)s)")
    parser.add_argument("--workers", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="that call at a time (%(default)s)")
    parser.add_argument("--tokens", type=int, default=40, help="of a request (%(default)s)")
    parser.add_argument("--kills", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--no-replicas", action="store_true", help="every expert on one worker only")
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    options = parser.parse_args()
    for flag, least in (("workers", 2), ("clients", 1), ("tokens", 1), ("kills", 1), ("experts", 1)):
        if getattr(options, flag) < least:
            parser.error(f"--{flag} {getattr(options, flag)} is less than {least}")
    if not options.moe_serve.is_file():
        parser.error(f"--moe-serve {options.moe_serve} is not a program (build it first)")
    with tempfile.TemporaryDirectory(prefix="moe-fleet-") as folder:
        return run(options, pathlib.Path(folder))


if __name__ == "__main__":
    sys.exit(main())
