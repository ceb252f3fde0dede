"""Starts moe_serve as a user would, alone or under mpirun, talks to it over gRPC and HTTP, and stops it: what all
end-to-end tests share. However a test ends, no process of its servers stays.

Environment: MOE_BIN_DIR (programs, default build/release/bin), MOE_PYTHON_STUBS (generated Python code, default
build/release/python), MOE_SOURCE_DIR (default: the repository that this file is in).
"""

import contextlib
import dataclasses
import http.client
import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
import unittest

import grpc

ROOT = pathlib.Path(os.environ.get("MOE_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BIN_DIR = pathlib.Path(os.environ.get("MOE_BIN_DIR", ROOT / "build/release/bin"))
STUBS_DIR = pathlib.Path(os.environ.get("MOE_PYTHON_STUBS", ROOT / "build/release/python"))
MODELS = ROOT / "models"
GOLDENS = ROOT / "tests/goldens"
OPTION_GOLDENS = ROOT / "tests/option_goldens"
MOE = MODELS / "eight-languages-moe"

# What Open MPI needs for more ranks than processors, and as root.
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]

# None of these is a measurement: far above what a loaded machine takes, so that only something that hangs meets them.
START_SECONDS = 120
CALL_SECONDS = 300
EXIT_SECONDS = 60
POLL_SECONDS = 0.01


def _load_stubs() -> types.SimpleNamespace:
    """Messages and stubs of proto/moe/v1 in one namespace."""
    sys.path.insert(0, str(STUBS_DIR))
    merged = types.SimpleNamespace()
    for name in ("inference", "cluster", "worker"):
        for suffix in ("_pb2", "_pb2_grpc"):
            module = importlib.import_module(f"moe.v1.{name}{suffix}")
            vars(merged).update({key: value for key, value in vars(module).items() if not key.startswith("_")})
    return merged


pb = _load_stubs()


def wait_until(condition, what: str, seconds: float = EXIT_SECONDS):
    """The first true value of condition(); AssertionError naming `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s: {what}")
        time.sleep(POLL_SECONDS)


def processes_of(marker: str) -> dict[int, str]:
    """Live processes, by id, whose command line holds `marker`."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                command = pathlib.Path("/proc", entry, "cmdline").read_text(errors="replace").replace("\0", " ")
                if marker in command:
                    found[int(entry)] = command
    return found


def kill_all(marker: str) -> None:
    """Ends every process whose command line holds `marker`, stopped ones too, and waits until they are gone."""
    def gone() -> bool:
        left = processes_of(marker)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left
    wait_until(gone, f"processes of {marker} that do not die")


def command_line(arguments, ranks: int) -> list[str]:
    """moe_serve with these flags: alone when ranks is 0, else under mpirun. Dies with this process."""
    launcher = [*MPIRUN, "-n", str(ranks)] if ranks else []
    return ["setpriv", "--pdeathsig", "KILL", *launcher, str(BIN_DIR / "moe_serve"), *map(str, arguments)]


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without MOE_…, which would be flags of the server."""
    return {key: value for key, value in os.environ.items() if not key.startswith("MOE_")} | extra


class Metrics:
    """One scrape in the Prometheus text format."""

    _SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \d+)?$")
    _LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

    def __init__(self, text: str):
        self.text = text
        self.samples: dict[str, dict[tuple, float]] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                match = self._SAMPLE.match(line)
                assert match, f"not a line of the text format: {line!r}"
                labels = tuple(sorted(self._LABEL.findall(match[2] or "")))
                self.samples.setdefault(match[1], {})[labels] = float(match[3])

    def __contains__(self, name: str) -> bool:
        return name in self.samples

    def get(self, name: str, **labels: str) -> float:
        """The sum over the series that have these labels; AssertionError when there is none."""
        wanted = set(labels.items())
        values = [value for key, value in self.samples.get(name, {}).items() if wanted <= set(key)]
        assert values, f"no series {name}{labels or ''}"
        return sum(values)

    def by_label(self, name: str, label: str) -> dict[str, float]:
        return {dict(key)[label]: value for key, value in self.samples.get(name, {}).items()}


@dataclasses.dataclass
class Continuation:
    """What became of one sequence of a batch."""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list = dataclasses.field(default_factory=list)
    routing: list = dataclasses.field(default_factory=list)
    finish: object = None  # moe.v1.Finish once it has come

    @property
    def reason(self) -> str:
        return pb.FinishReason.Name(self.finish.reason).removeprefix("FINISH_REASON_") if self.finish else "none"

    def text(self) -> str:
        return bytes(self.token_ids).decode("utf-8", errors="replace")

    def add(self, event) -> None:
        assert self.finish is None, "an event after the sequence's finish"
        self.token_ids.extend(event.token_ids)
        self.logprobs.extend(event.logprobs)
        self.routing.extend(event.routing)
        if event.HasField("finish"):
            self.finish = event.finish


def generate_request(prompts, max_new_tokens: int, sampling=None, **fields):
    fields.setdefault("ignore_eos", True)
    return pb.GenerateRequest(sequences=[pb.TokenSequence(token_ids=prompt) for prompt in prompts],
                              max_new_tokens=max_new_tokens, sampling=pb.Sampling(**(sampling or {})), **fields)


class Server:
    """A running job."""

    def __init__(self, process: subprocess.Popen, folder: pathlib.Path, ready: dict):
        self.process = process
        self.marker = folder.name  # stands in the command line of every process of the job
        self.log_path = folder / "log"
        self.ready_path = folder / "ready.json"
        self.address: str = ready["grpc"]
        self.metrics_addresses: list[str] = ready["metrics"]
        self.ranks: int = ready["ranks"]
        self.pid: int = ready["pid"]
        self.channel = self.connect()
        self.inference = pb.InferenceStub(self.channel)
        self.cluster = pb.ClusterStub(self.channel)

    def connect(self) -> grpc.Channel:
        unlimited = -1
        return grpc.insecure_channel(self.address, options=[
            ("grpc.max_receive_message_length", unlimited), ("grpc.max_send_message_length", unlimited),
            ("grpc.use_local_subchannel_pool", 1)])  # nothing remembered of an earlier server on the same port

    # Requests.

    def generate(self, prompts, max_new_tokens: int, *, sampling=None, timeout=CALL_SECONDS, **fields):
        """One Continuation for each prompt; grpc.RpcError when the call fails."""
        results = [Continuation() for _ in prompts]
        request = generate_request(prompts, max_new_tokens, sampling, **fields)
        for event in self.inference.Generate(request, timeout=timeout):
            results[event.sequence].add(event)
        return results

    def score(self, prompts, logits: str = "NONE", *, timeout=CALL_SECONDS, **fields):
        request = pb.ScoreRequest(sequences=[pb.TokenSequence(token_ids=prompt) for prompt in prompts],
                                  return_logits=pb.LogitsMode.Value(f"LOGITS_MODE_{logits}"), **fields)
        return self.inference.Score(request, timeout=timeout).scores

    def model(self):
        return self.inference.GetModel(pb.GetModelRequest(), timeout=CALL_SECONDS)

    def get_cluster(self):
        return self.cluster.GetCluster(pb.GetClusterRequest(), timeout=CALL_SECONDS)

    def health(self, service: str = "") -> str:
        """The answer of grpc.health.v1.Health, whose two messages are simple enough to be written out."""
        name = service.encode()
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = check(bytes([0x0A, len(name)]) + name if name else b"", timeout=CALL_SECONDS)
        return {b"": "UNKNOWN", b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}[answer]

    # Figures.

    def http_get(self, path: str, rank: int = 0) -> tuple[int, str]:
        host, port = self.metrics_addresses[rank].rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port), timeout=CALL_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def metrics(self, rank: int = 0, path: str = "/metrics") -> Metrics:
        status, text = self.http_get(path, rank)
        assert status == 200, f"{path} of rank {rank}: HTTP status {status}"
        return Metrics(text)

    def metric(self, name: str, rank: int = 0, **labels: str) -> float:
        return self.metrics(rank).get(name, **labels)

    def wait_for_metric(self, name: str, condition, seconds: float = EXIT_SECONDS, **labels: str) -> float:
        """Until condition(value) is true of the router's metric."""
        value = self.metric(name, **labels)
        def reached() -> bool:
            nonlocal value
            value = self.metric(name, **labels)
            return condition(value)
        wait_until(reached, f"{name}{labels or ''} is {value}", seconds)
        return value

    def wait_until_idle(self) -> None:
        for name in ("moe_requests_waiting", "moe_requests_running", "moe_kv_tokens_used"):
            self.wait_for_metric(name, lambda value: value == 0)

    # Processes.

    def rank_pid(self, rank: int) -> int:
        return self.get_cluster().ranks[rank].pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        return processes_of(self.marker)

    def signal(self, number: signal.Signals) -> None:
        """To rank 0; mpirun's own process is self.process."""
        os.kill(self.pid, number)

    def wait_for_exit(self, seconds: float = EXIT_SECONDS) -> int:
        """The exit code of the job; a signal's number below 0 if that ended it."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s; log:\n{self.log()}") from None

    def stop(self) -> None:
        """Drains and requires that all of the job ends well."""
        self.channel.close()
        self.signal(signal.SIGTERM)
        code = self.wait_for_exit()
        assert code == 0, f"exit code {code} after SIGTERM to rank 0; log:\n{self.log()}"
        wait_until(lambda: not self.processes(), "processes of a job that has ended")


def await_ready(process: subprocess.Popen, folder: pathlib.Path, command: list[str]) -> dict:
    """The ready file that appears in the folder, beside the log."""
    ready, log = folder / "ready.json", folder / "log"
    deadline = time.monotonic() + START_SECONDS
    while not ready.exists():  # written atomically
        if process.poll() is not None:
            raise AssertionError(f"{' '.join(command)} exited with {process.returncode}:\n{log.read_text()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"{' '.join(command)} was not ready after {START_SECONDS} s:\n{log.read_text()}")
        time.sleep(POLL_SECONDS)
    return json.loads(ready.read_text())


@contextlib.contextmanager
def running(model, ranks: int = 0, *flags, expect_clean_stop: bool = True, metrics_port="auto", listen="127.0.0.1:0"):
    """A Server while the block runs; then it is drained with SIGTERM and must end with 0, unless the block has ended it
    or does not expect that. ranks 0 is moe_serve alone, N is mpirun -n N."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="moe-e2e-"))
    command = command_line(["--model", model, "--listen", listen, "--metrics-port", metrics_port,
                            "--ready-file", folder / "ready.json", *flags], ranks)
    process = None
    try:
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                       start_new_session=True, env=clean_environment())
        server = Server(process, folder, await_ready(process, folder, command))
        yield server
        if expect_clean_stop and process.poll() is None:
            server.stop()
        server.channel.close()
    finally:
        kill_all(folder.name)
        if process is not None:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass
class Outcome:
    """A run of moe_serve that was not expected to serve."""
    exit_code: int
    stdout: str
    stderr: str

    def own_lines(self) -> list[str]:
        """What the program itself said, without mpirun's words."""
        return [line for line in self.stderr.splitlines() if line.startswith("moe_serve:")]


def run(flags, ranks: int = 0, seconds: float = EXIT_SECONDS, **environment: str) -> Outcome:
    """Runs moe_serve to its end; AssertionError, and no process left, when it does not end by itself."""
    with tempfile.TemporaryDirectory(prefix="moe-e2e-") as name:
        folder = pathlib.Path(name)
        command = command_line([*flags, "--ready-file", folder / "ready.json"], ranks)
        try:
            with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                           start_new_session=True, env=clean_environment(**environment))
            process.wait(seconds)
            wait_until(lambda: not processes_of(folder.name), f"processes that outlive {' '.join(command)}")
            return Outcome(process.returncode, (folder / "out").read_text(), (folder / "err").read_text())
        except subprocess.TimeoutExpired:
            said = (folder / "err").read_text()
            raise AssertionError(f"{' '.join(command)} still ran after {seconds} s:\n{said}") from None
        finally:
            kill_all(folder.name)
            process.wait()


class ServingTest(unittest.TestCase):
    """Assertions that several tests make."""

    maxDiff = 2000

    def assert_refused(self, code: grpc.StatusCode, *needles: str, call) -> grpc.RpcError:
        """call() must raise a gRPC error with this code that names all needles."""
        with self.assertRaises(grpc.RpcError) as caught:
            result = call()
            if not isinstance(result, (list, tuple)) and hasattr(result, "__next__"):
                list(result)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        for needle in needles:
            self.assertIn(needle, caught.exception.details())
        return caught.exception


def main() -> None:
    unittest.main(verbosity=2)
