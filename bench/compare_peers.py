#!/usr/bin/python3
"""Sets this engine beside another one (llama.cpp, ik_llama.cpp) on the same shape, threads and bits of weights.

  compare_peers.py --peer ik_llama.cpp=DIR --weight-type int8 --make-gguf FILE      # DIR has llama-bench (or bin/llama-bench)
  compare_peers.py --peer ik_llama.cpp=DIR --peer llama.cpp=DIR --weight-type int4 --gguf FILE --json
  compare_peers.py --peer none                                                      # shares of the machine's roofs instead

Both sides take turns (A B A B ...) for some rounds; the table has medians, spreads and ratios: decode with different random
tokens in every sequence, and prefill. Weights are random on both sides: --make-gguf writes a file of the shape of --model
unless it is there. Without --peer a peer is looked for on PATH. What can and what can't be compared: docs/benchmarks.md.
Exit code: 0 all measured, 1 something was not (the rest is printed), 2 bad usage. Needs nothing but the standard library."""

import argparse
import json
import os
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
import time

import peer_programs
import random_gguf

ROOT = pathlib.Path(__file__).resolve().parents[1]
GGUF_TYPES = {"int8": "q8_0", "int4": "q4_0", "bf16": "bf16", "f16": "f16"}
OURS = "moe_bench"
OUR_FIGURES = {"distinct_experts", "s_mbu", "s_mfu"}
NO_PEER = ("no peer was found: put llama-bench on PATH, or name its folder with --peer NAME=DIR; "
           "shares of the machine's roofs stand in")
EXPERTS_NOTE = "experts: distinct per layer; = counted, ~ expected of even routing, ! one token fed to all sequences"


class UsageError(Exception):
    """Bad usage; one sentence."""


# ---- this engine

def find_moe_bench(given: str | None) -> pathlib.Path:
    candidates = [given] if given else [ROOT / "build/release/bin/moe_bench", shutil.which("moe_bench")]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK) and pathlib.Path(candidate).is_file():
            return pathlib.Path(candidate).resolve()
    raise UsageError(f"{given or 'moe_bench'} is not a program (build it, or name it with --moe-bench)")


def run_ours(program: pathlib.Path, options: argparse.Namespace, part: str) -> dict:
    """Of the envelope of `moe_bench engine`, what is used here; `part` is "prefill" or "decode"."""
    prefill = part == "prefill"
    command = [program, "engine", "--model", options.model, "--load-format", options.load_format, "--weight-type",
               options.weight_type, "--threads", options.threads, "-p", options.prompt_length if prefill else 0,
               "-n", 0 if prefill else options.generate, "-b", 1 if prefill else ",".join(map(str, options.batches)),
               "-r", options.repetitions, "--json", *shlex.split(options.moe_options)]
    outcome = peer_programs.run(command, options.timeout)
    expected = {(f"pp{options.prompt_length}", 1)} if prefill else {
        (f"tg{options.generate}", batch) for batch in options.batches}
    try:
        envelope = json.loads(outcome.stdout)
        rows = envelope["results"]
        if {(row["test"], row["batch"]) for row in rows} != expected or not all(
                row["repetitions"] and OUR_FIGURES <= set(row) for row in rows):
            raise ValueError("results have other tests or figures than were asked for")
        return {key: envelope[key] for key in ("host", "build", "results")}
    except (ValueError, KeyError, TypeError) as error:
        raise peer_programs.PeerError(f"moe_bench did not print its JSON: {type(error).__name__} {error}") from None


# ---- rounds

class Records:
    """Samples by (test, batch, engine, program), kept round by round."""

    def __init__(self) -> None:
        self.rounds: dict[tuple[str, int, str, str], dict[int, list[float]]] = {}
        self.shares: dict[tuple[str, int, str, str], dict[str, list[float | None]]] = {}  # of the roofs, one a round
        self.more: dict[tuple[str, int, str, str], dict] = {}

    def add(self, round_number: int, key: tuple[str, int, str, str], values: list[float], **more) -> None:
        self.rounds.setdefault(key, {}).setdefault(round_number, []).extend(values)
        self.more.setdefault(key, {}).update(more)

    def add_shares(self, key: tuple[str, int, str, str], **shares: float | None) -> None:
        for name, share in shares.items():
            self.shares.setdefault(key, {}).setdefault(name, []).append(share)

    def median_shares(self, key: tuple[str, int, str, str]) -> dict[str, float | None]:
        """Over the rounds; none where a round has none."""
        return {name: None if None in of_rounds else statistics.median(of_rounds)
                for name, of_rounds in self.shares.get(key, {}).items()}


def record_ours(records: Records, round_number: int, envelope: dict) -> None:
    for row in envelope["results"]:
        key = (row["test"], row["batch"], OURS, OURS)
        records.add(round_number, key, row["repetitions"], distinct_experts=row["distinct_experts"])
        records.add_shares(key, s_mbu=row["s_mbu"], s_mfu=row["s_mfu"])


def measure(program: pathlib.Path, peers: list[peer_programs.Peer], options: argparse.Namespace,
            plan: peer_programs.Plan) -> tuple[Records, dict, list[str]]:
    """All rounds; the first envelope of this engine, for machine and build; and what failed, as sentences. PeerError when
    this engine fails: without it there is nothing to compare."""
    records, envelope, problems = Records(), None, []
    steps = {"prefill": ("llama-bench",), "decode": ("llama-server", "llama-batched-bench")}
    drivers = {"llama-bench": peer_programs.bench, "llama-server": peer_programs.serve,
               "llama-batched-bench": peer_programs.batched_bench}
    problems += [f"{peer.name} has no {name}" for peer in peers for name in drivers if name not in peer.programs]
    for round_number in range(options.rounds):
        for part, names in steps.items():
            ours = run_ours(program, options, part)
            envelope = envelope or ours
            record_ours(records, round_number, ours)
            for peer in peers:
                for name in (name for name in names if name in peer.programs):
                    progress(f"round {round_number + 1} of {options.rounds}: {peer.name}, {name}")
                    try:
                        samples = drivers[name](peer, plan)
                    except peer_programs.PeerError as error:
                        problems.append(f"round {round_number + 1}: {peer.name}: {error}")
                        continue
                    for sample in samples:
                        records.add(round_number, (sample.test, sample.batch, peer.name, name), [sample.tokens_per_s],
                                    distinct_texts=sample.distinct_texts)
    return records, envelope, problems


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# ---- figures

def experts_of(key: tuple[str, int, str, str], more: dict, shape: random_gguf.Shape) -> tuple[float | None, str]:
    """Distinct experts per layer and step, and how that is known. A program that does not count them routes each of its
    rows to k of E experts; evenly and independently, a step of n rows touches E (1 - (1 - k / E)^n)."""
    test, batch, engine, program = key
    if engine == OURS:
        return more["distinct_experts"], "counted"
    rows = int(test[2:]) if test.startswith("pp") else batch
    if rows == 1 or program == "llama-batched-bench":
        return shape.experts_per_token, "one token"
    return shape.experts * (1 - (1 - shape.experts_per_token / shape.experts) ** rows), "expected"


def rows_of(records: Records, shape: random_gguf.Shape) -> list[dict]:
    """One for each test and program; `ratio` is this engine's median over the row's, of all rounds and of each one."""
    found = []
    ours_first = sorted(records.rounds, key=lambda key: (key[0][:2] != "pp", key[1], key[2] != OURS))
    for key in ours_first:
        test, batch, engine, program = key
        values = [value for of_round in records.rounds[key].values() for value in of_round]
        distinct, known = experts_of(key, records.more[key], shape)
        row = {"test": test, "batch": batch, "engine": engine, "program": program,
               "tokens_per_s": statistics.median(values), "tokens_per_s_min": min(values), "tokens_per_s_max": max(values),
               "repetitions": values, "distinct_experts": distinct, "distinct_experts_are": known,
               "upper_bound": program == "llama-batched-bench" and batch > 1} | {
                   name: value for name, value in records.more[key].items() if name != "distinct_experts"}
        row |= records.median_shares(key)
        ours = records.rounds.get((test, batch, OURS, OURS))
        if engine != OURS and ours:
            row["ratio"] = statistics.median(v for of_round in ours.values() for v in of_round) / row["tokens_per_s"]
            by_round = [statistics.median(ours[number]) / statistics.median(theirs)
                        for number, theirs in records.rounds[key].items()]
            row |= {"ratio_min": min(by_round), "ratio_max": max(by_round)}
        found.append(row)
    return found


def check_sequences(rows: list[dict], problems: list[str]) -> None:
    """Random weights seldom lead two sequences to the same text; where they do, fewer experts are touched."""
    problems += [f"{row['engine']}: only {row['distinct_texts']} of {row['batch']} sequences of {row['program']} had "
                 "tokens of their own" for row in rows
                 if row.get("distinct_texts") is not None and row["distinct_texts"] < 0.9 * row["batch"]]


def shown_experts(row: dict) -> str:
    if row["distinct_experts"] is None:
        return "-"
    mark = {"counted": "=", "expected": "~", "one token": "!" if row["upper_bound"] else "="}
    return f"{mark[row['distinct_experts_are']]}{row['distinct_experts']:.1f}"


def table(rows: list[dict], peers: list[peer_programs.Peer], host: dict, problems: list[str]) -> str:
    lines = [f"{host['cpu']}, {host['cores']} cores, {host['isa']}"]
    if host["read_bandwidth_bytes_per_s"]:
        lines[0] += f"; reads {host['read_bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, {host['peak_flops'] / 1e9:.0f} GFLOP/s (fp32)"
    layout = "{:<7}{:>6}  {:<32}{:>10}{:>18}{:>9}{:>7}{:>15}{:>8}{:>8}".format
    lines.append(layout("test", "batch", "engine", "tokens/s", "min - max", "experts", "ratio", "of each round", "S-MBU",
                        "S-MFU"))
    for row in rows:
        name = row["engine"] if row["engine"] == OURS else f"{row['engine']} {row['program']}"
        lines.append(layout(
            row["test"], row["batch"], name, f"{row['tokens_per_s']:.2f}",
            f"{row['tokens_per_s_min']:.2f} - {row['tokens_per_s_max']:.2f}", shown_experts(row),
            f"{row['ratio']:.2f}" if "ratio" in row else "",
            f"{row['ratio_min']:.2f} - {row['ratio_max']:.2f}" if "ratio" in row else "",
            *("" if row.get(share) is None else f"{row[share]:.1%}" for share in ("s_mbu", "s_mfu")),
        ).rstrip() + (" upper bound" if row["upper_bound"] else ""))
    lines.append(f"ratio: this engine's median / the row's; {EXPERTS_NOTE}")
    lines += [f"{peer.name} {program}: {' '.join(options) or 'no options'}" for peer in peers
              for program, options in peer.options.items()]
    lines += [f"PROBLEM: {problem}" for problem in problems]
    return "\n".join(lines) + "\n"


# ---- command line

def numbers(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split(","))
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is not a list of numbers of at least 1')
    return values


def at_least_one(text: str) -> int:
    return numbers(text)[0] if "," not in text else numbers("0")[0]


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peer", action="append", default=[], metavar="NAME=DIR", help="a peer's name and folder; may be repeated; "
        "none: no peer (without: llama-bench and its like on PATH)")
    add("--model", default=str(ROOT / "models/shapes/olmoe-1b-7b"), help="folder with the shape's config.json (%(default)s)")
    add("--load-format", choices=("dummy", "auto"), default="dummy", help="of this engine's weights (%(default)s)")
    add("--weight-type", choices=tuple(GGUF_TYPES), default="int8", help="of this engine (%(default)s)")
    add("--gguf", metavar="FILE", help="the peer's model, of the same shape and bits of weights")
    add("--make-gguf", metavar="FILE", help="the same; made with random weights unless it is there")
    add("--gguf-type", choices=tuple(random_gguf.TYPES), help="of the weights of --make-gguf; without: " +
        ", ".join(f"{theirs} for {ours}" for ours, theirs in GGUF_TYPES.items()))
    add("--gguf-dense-type", choices=tuple(random_gguf.TYPES), help="of embedding, attention and head (without: as "
        "--gguf-type)")
    add("--gguf-architecture", choices=("qwen3moe", "olmoe"), default="qwen3moe", help="that of --make-gguf is declared as; "
        "ik_llama.cpp does not know olmoe, which differs in the norms on queries and keys alone (%(default)s)")
    add("--threads", type=at_least_one, default=len(os.sched_getaffinity(0)), help="of both sides (%(default)s)")
    add("--prompt-length", type=at_least_one, default=512, help="tokens of the prefill (%(default)s)")
    add("--generate", type=at_least_one, default=64, help="tokens of the decode (%(default)s)")
    add("--batches", type=numbers, default=(1, 4, 32), help="sequences of the decode, a list (1,4,32)")
    add("--rounds", type=at_least_one, default=3, help="turns of each side (%(default)s)")
    add("--repetitions", type=at_least_one, default=1, help="of each test in a round (%(default)s)")
    add("--seed", type=int, default=1, help="of the prompts and of --make-gguf (%(default)s)")
    add("--timeout", type=float, default=1800, help="seconds that one program may take (%(default)g)")
    add("--moe-bench", metavar="FILE", help="this engine's program (build/release/bin/moe_bench, or on PATH)")
    for program, flag in (("moe_bench engine", "--moe-options"), ("llama-bench", "--bench-options"),
                          ("llama-server", "--server-options"), ("llama-batched-bench", "--batched-options")):
        add(flag, default="", metavar="OPTIONS", help=f"more options of {program}, in one word")
    add("--json", action="store_true", help="print the result as JSON instead of the table")
    add("--output", metavar="FILE", help="write the JSON into this file too")
    return parser.parse_args(arguments)


def peers_of(options: argparse.Namespace) -> list[peer_programs.Peer]:
    if options.peer == ["none"]:
        return []
    more = {"llama-bench": shlex.split(options.bench_options), "llama-server": shlex.split(options.server_options),
            "llama-batched-bench": shlex.split(options.batched_options)}
    try:
        peers = peer_programs.find(options.peer, more)
    except peer_programs.PeerError as error:
        raise UsageError(str(error)) from None
    names = [OURS, *(peer.name for peer in peers)]
    if len(set(names)) != len(names):
        raise UsageError(f"--peer: two engines have one name ({', '.join(names)})")
    if peers and bool(options.gguf) == bool(options.make_gguf):
        raise UsageError("a peer needs one of --gguf FILE and --make-gguf FILE")
    return peers


def gguf_of(options: argparse.Namespace, shape: random_gguf.Shape) -> pathlib.Path:
    path = pathlib.Path(options.gguf or options.make_gguf)
    if options.make_gguf and not path.exists():
        progress(f"writing {path}")
        kind = options.gguf_type or GGUF_TYPES[options.weight_type]
        random_gguf.write(shape, path, kind, options.gguf_dense_type or kind, options.gguf_architecture, options.seed)
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    return path.resolve()


def compare(options: argparse.Namespace) -> int:
    program, peers = find_moe_bench(options.moe_bench), peers_of(options)
    try:
        shape = random_gguf.Shape.read(pathlib.Path(options.model) / "config.json")
        gguf = gguf_of(options, shape) if peers else pathlib.Path()
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)) from None
    plan = peer_programs.Plan(gguf=gguf, threads=options.threads, prompt_length=options.prompt_length,
                              generate=options.generate, batches=options.batches, repetitions=options.repetitions,
                              vocabulary=shape.vocabulary, seed=options.seed, timeout=options.timeout)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if not peers and options.peer != ["none"]:
        print(f"compare_peers.py: {NO_PEER}", file=sys.stderr)
    records, ours, problems = measure(program, peers, options, plan)
    progress("")
    rows = rows_of(records, shape)
    check_sequences(rows, problems)
    if not peers and options.peer != ["none"]:
        problems.append(NO_PEER)
    result = {"schema": 1, "kind": "compare_peers", "when": when, "host": ours["host"], "build": ours["build"],
              "config": vars(options) | {"batches": ",".join(map(str, options.batches))},
              "results": {"rows": rows, "problems": problems,
                          "peers": [{"name": peer.name, "options": peer.options} for peer in peers]}}
    text = json.dumps(result, indent=2) + "\n"
    if options.output:
        pathlib.Path(options.output).write_text(text)
    print(text if options.json else table(rows, peers, ours["host"], problems), end="")
    return 1 if problems else 0


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    try:
        return compare(options)
    except UsageError as error:
        print(f"compare_peers.py: {error}", file=sys.stderr)
        return 2
    except (peer_programs.PeerError, OSError, subprocess.SubprocessError) as error:
        print(f"compare_peers.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
