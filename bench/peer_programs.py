"""Finds, runs and reads the benchmark programs and the server of llama.cpp and its relatives, for compare_peers.py.

Which of a peer's options make it fast differs from version to version: those that its --help names are used, and
reported. Every sequence that the server gets is random and its own. llama-batched-bench feeds one token to all
sequences, which are then routed to the same experts: what it measures is an upper bound."""

import contextlib
import dataclasses
import http.client
import json
import pathlib
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import random_gguf

PROGRAMS = ("llama-bench", "llama-server", "llama-batched-bench")
# Repacked weights, fused experts, flash attention; no layers on a GPU.
BENCH_OPTIONS = (("-rtr", "1"), ("-fmoe", "1"), ("-fa", "1"), ("-ngl", "0"))
# The same of llama-server and llama-batched-bench, whose switches take no number; without the server's store of prompts.
COMMON_OPTIONS = (("-rtr", None), ("-fmoe", None), ("-fa", "on"), ("-ngl", "0"))
SERVER_OPTIONS = COMMON_OPTIONS + (("-cram", "0"), ("--no-webui", None))
SERVER_SPARE_TOKENS = 32  # of a sequence's context beyond what it generates


class PeerError(Exception):
    """A peer's program that could not be run, or said what can't be read; one sentence."""


@dataclasses.dataclass
class Sample:
    """What one repetition of one test gave."""
    program: str
    test: str  # "pp512", "tg64"
    batch: int
    tokens_per_s: float
    # Sequences whose text ends as nobody else's of the batch; None where the program does not say.
    distinct_texts: int | None = None


@dataclasses.dataclass(frozen=True)
class Peer:
    name: str
    programs: dict[str, pathlib.Path]
    options: dict[str, tuple[str, ...]]  # of each program


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured of a peer."""
    gguf: pathlib.Path  # absolute, as all paths here: a peer runs in a folder of its own
    threads: int
    prompt_length: int
    generate: int
    batches: tuple[int, ...]
    repetitions: int
    vocabulary: int
    seed: int
    timeout: float  # seconds, of one program


def find(specifications: list[str], more_options: dict[str, list[str]]) -> list[Peer]:
    """Those of `--peer NAME=DIR`, or without any the one on PATH, if there. PeerError for a DIR without llama-bench.
    `more_options` of each program come last, so that they win."""
    found = []
    for specification in specifications:
        name, _, folder = specification.partition("=")
        programs = {program: path for program in PROGRAMS for path in _places(pathlib.Path(folder), program)}
        if not name or not folder or "llama-bench" not in programs:
            raise PeerError(f'--peer "{specification}" is not NAME=DIR of a folder with llama-bench (or bin/llama-bench)')
        found.append(_described(name, programs, more_options))
    if not specifications and shutil.which("llama-bench"):
        programs = {program: pathlib.Path(path).resolve() for program in PROGRAMS if (path := shutil.which(program))}
        found.append(_described("llama.cpp", programs, more_options))
    return found


def _places(folder: pathlib.Path, program: str) -> Iterator[pathlib.Path]:
    yield from (path.resolve() for path in (folder / "bin" / program, folder / program) if path.is_file())


def _described(name: str, programs: dict[str, pathlib.Path], more_options: dict[str, list[str]]) -> Peer:
    wanted = {"llama-bench": BENCH_OPTIONS, "llama-server": SERVER_OPTIONS, "llama-batched-bench": COMMON_OPTIONS}
    options = {}
    for program, path in programs.items():
        # Some print it on stderr, some end with 1.
        with _somewhere() as folder:
            outcome = _outcome([path, "--help"], 60, folder)
        text = outcome.stdout + outcome.stderr
        known = [option for option in wanted[program] if re.search(rf"(?<![\w-]){option[0]}(?![\w-])", text)]
        options[program] = tuple(word for option in known for word in option if word) + tuple(more_options.get(program, ()))
    return Peer(name, programs, options)


def _somewhere() -> tempfile.TemporaryDirectory:
    """A folder to run in: some programs leave logs where they are started."""
    return tempfile.TemporaryDirectory(prefix="moe-peer-", ignore_cleanup_errors=True)


def _outcome(command: list, timeout: float, folder: str | None) -> subprocess.CompletedProcess:
    program = pathlib.Path(command[0]).name
    try:
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace", check=False,
                              stdin=subprocess.DEVNULL, timeout=timeout, cwd=folder)
    except subprocess.TimeoutExpired:
        raise PeerError(f"{program} was not done after {timeout:g} s") from None
    except OSError as error:
        raise PeerError(f"{program} could not be started: {error.strerror}") from None


def run(command: list, timeout: float, folder: str | None = None) -> subprocess.CompletedProcess:
    """PeerError with the last line of what it said when it fails. Without `folder` it runs where the script does."""
    outcome = _outcome(command, timeout, folder)
    if outcome.returncode != 0:
        raise PeerError(f"{pathlib.Path(command[0]).name} ended with {outcome.returncode}: "
                        f"{last_line(outcome.stderr) or last_line(outcome.stdout) or 'it said nothing'}")
    return outcome


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _positive(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise PeerError(f"{what} is {value!r}, not a positive number")
    return float(value)


# ---- llama-bench: prefill, and decode of one sequence; its tokens are random

def bench(peer: Peer, plan: Plan) -> list[Sample]:
    generate = plan.generate if 1 in plan.batches else 0
    command = [peer.programs["llama-bench"], "-m", plan.gguf, "-t", plan.threads, "-p", plan.prompt_length, "-n", generate,
               "-r", plan.repetitions, "-o", "json", *peer.options["llama-bench"]]
    with _somewhere() as folder:
        outcome = run(command, plan.timeout, folder)
    return parse_bench(outcome.stdout, plan.prompt_length, generate)


def parse_bench(text: str, prompt_length: int, generate: int) -> list[Sample]:
    expected = {f"pp{prompt_length}"} if prompt_length else set()
    expected |= {f"tg{generate}"} if generate else set()
    try:
        # Some builds log before, or end the list with a comma.
        begin = re.search(r"^\[", text, re.MULTILINE)
        entries = json.loads(re.sub(r",\s*\]\s*$", "]", text[begin.start():] if begin else text))
        samples = [Sample("llama-bench", f"pp{entry['n_prompt']}" if entry["n_prompt"] else f"tg{entry['n_gen']}", 1,
                          _positive(value, "llama-bench: samples_ts"))
                   for entry in entries for value in entry["samples_ts"]]
    except (ValueError, KeyError, TypeError) as error:
        raise PeerError(f"llama-bench did not print its JSON: {type(error).__name__} {error}") from None
    missing = expected - {sample.test for sample in samples}
    if missing:
        raise PeerError(f"llama-bench printed no figure for {', '.join(sorted(missing))}")
    return [sample for sample in samples if sample.test in expected]


# ---- llama-batched-bench: decode of a batch, one token to all of its sequences

def batched_bench(peer: Peer, plan: Plan) -> list[Sample]:
    context = max(plan.batches) * (plan.generate + SERVER_SPARE_TOKENS)
    command = [peer.programs["llama-batched-bench"], "-m", plan.gguf, "-t", plan.threads, "-c", context, "-npp", 1,
               "-ntg", plan.generate, "-npl", ",".join(map(str, plan.batches)), *peer.options["llama-batched-bench"]]
    with _somewhere() as folder:
        outcome = run(command, plan.timeout, folder)
    return parse_batched_bench(outcome.stdout + "\n" + outcome.stderr, plan.generate, plan.batches)


def parse_batched_bench(text: str, generate: int, batches: tuple[int, ...]) -> list[Sample]:
    """Rows of its table: PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG, T, S."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        with contextlib.suppress(ValueError):
            numbers = list(map(float, cells))
            if len(numbers) == 10 and numbers[1] == generate:
                found[int(numbers[2])] = numbers[7]
    missing = [str(batch) for batch in batches if batch not in found]
    if missing:
        raise PeerError(f"llama-batched-bench printed no row for batch {', '.join(missing)}")
    return [Sample("llama-batched-bench", f"tg{generate}", batch,
                   _positive(found[batch], "llama-batched-bench: S_TG")) for batch in batches]


# ---- llama-server: decode of a batch, another random prompt in every sequence

def serve(peer: Peer, plan: Plan) -> list[Sample]:
    draw = random.Random(plan.seed)
    samples = []
    with _running_server(peer, plan) as port:
        _complete(port, plan, max(plan.batches), 4, draw)  # not counted: touches memory, builds the graph
        for batch in plan.batches:
            for _ in range(plan.repetitions):
                # The first token comes out of the prompt; the time of a sequence counts from there.
                answers = _complete(port, plan, batch, plan.generate + 1, draw)
                samples.append(parse_completions(answers, plan.generate, batch))
    return samples


def parse_completions(answers: object, generate: int, batch: int) -> Sample:
    """Sum over sequences of (tokens - 1) / seconds from its first to its last token: all of them run all that time, but
    for a step or two when their prompts are not taken into one step."""
    answers = answers if isinstance(answers, list) else [answers]
    if len(answers) != batch:
        raise PeerError(f"llama-server answered {len(answers)} of {batch} sequences")
    rate = 0.0
    for answer in answers:
        try:
            tokens, milliseconds = answer["timings"]["predicted_n"], answer["timings"]["predicted_ms"]
        except (KeyError, TypeError):
            raise PeerError("llama-server's answer has no timings") from None
        if tokens != generate + 1:
            raise PeerError(f"llama-server generated {tokens} tokens where {generate + 1} were asked for")
        rate += generate / (_positive(milliseconds, "llama-server: predicted_ms") / 1000)
    # The second half: prompts differ, so the first token would differ even where all sequences then go one way.
    ends = [text[len(text) // 2:] if isinstance(text := answer.get("content"), str) else "" for answer in answers]
    distinct = sum(ends.count(end) == 1 for end in ends) if all(ends) else None
    return Sample("llama-server", f"tg{generate}", batch, rate, distinct)


def _complete(port: int, plan: Plan, batch: int, tokens: int, draw: random.Random) -> object:
    """One call with a prompt of one random token for each sequence, greedy: another choice would cost a sort."""
    prompts = [[token] for token in draw.sample(range(random_gguf.FIRST_PLAIN_TOKEN, plan.vocabulary), batch)]
    body = {"prompt": prompts if batch > 1 else prompts[0], "n_predict": tokens, "ignore_eos": True, "temperature": 0,
            "cache_prompt": False, "stream": False}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=plan.timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise PeerError(f"llama-server refused the sequences: {error.code} {last_line(error.read().decode(errors='replace'))}") from None
    except (OSError, http.client.HTTPException) as error:
        raise PeerError(f"llama-server did not answer: {error}") from None
    except ValueError as error:
        raise PeerError(f"llama-server did not answer with JSON: {error}") from None


@contextlib.contextmanager
def _held_port() -> Iterator[int]:
    """A port that nobody else is given meanwhile, and that a server may bind: it says that it shares, as all servers do
    for the sake of a restart, and does not listen."""
    with socket.socket() as holder:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            holder.setsockopt(socket.SOL_SOCKET, option, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def _running_server(peer: Peer, plan: Plan) -> Iterator[int]:
    """Its port, once it has loaded the model. It is stopped in every case."""
    slots = max(plan.batches)
    with _held_port() as port, tempfile.TemporaryFile("w+", errors="replace") as log, _somewhere() as folder:
        command = [peer.programs["llama-server"], "-m", plan.gguf, "-t", plan.threads, "--host", "127.0.0.1", "--port",
                   port, "-np", slots, "-c", slots * (plan.generate + SERVER_SPARE_TOKENS), *peer.options["llama-server"]]
        try:
            server = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        except OSError as error:
            raise PeerError(f"llama-server could not be started: {error.strerror}") from None
        try:
            _wait_until_ready(server, port, plan.timeout, log)
            yield port
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_until_ready(server: subprocess.Popen, port: int, timeout: float, log) -> None:
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
                if response.status == 200:
                    return
        if server.poll() is not None:
            log.seek(0)
            raise PeerError(f"llama-server ended with {server.returncode}: {last_line(log.read()) or 'it said nothing'}")
        if time.monotonic() > deadline:
            raise PeerError(f"llama-server was not ready after {timeout:g} s")
        time.sleep(0.1)
