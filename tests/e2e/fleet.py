"""Starts moe_serve worker and moe_serve router as a user would: processes of their own, joined by gRPC, without MPI."""

import contextlib
import pathlib
import shutil
import signal
import subprocess
import tempfile

import serving


class Worker:
    """A place in a fleet: its process may die and be started again on the same port, or socket."""

    def __init__(self, folder: pathlib.Path, model, *flags, listen: str = "127.0.0.1:0"):
        self.folder, self.model, self.flags = folder, model, flags
        self.address = listen.format(folder=folder)
        self.process: subprocess.Popen | None = None
        self.ready: dict = {}
        folder.mkdir()

    def start(self) -> None:
        (self.folder / "ready.json").unlink(missing_ok=True)
        command = serving.command_line(["worker", "--model", self.model, "--listen", self.address, "--metrics-port",
                                        "auto", "--threads", 1, "--ready-file", self.folder / "ready.json",
                                        *self.flags], 0)
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                            start_new_session=True, env=serving.clean_environment())
        self.ready = serving.await_ready(self.process, self.folder, command)
        self.address = self.ready["grpc"]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait(serving.EXIT_SECONDS)

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        self.signal(signal.SIGTERM)
        return self.process.wait(serving.EXIT_SECONDS)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


class Fleet:
    """Workers, and routers over them."""

    def __init__(self, folder: pathlib.Path, model, workers: int, worker_flags=(), **options):
        self.folder, self.model = folder, model
        self.workers = [Worker(folder / f"worker{i}", model, *worker_flags, **options) for i in range(workers)]
        for worker in self.workers:
            worker.start()
        self._routers = 0

    def addresses(self) -> str:
        return ",".join(worker.address for worker in self.workers)

    def router_command(self, folder: pathlib.Path, *flags, model=None) -> list[str]:
        return serving.command_line(["router", "--model", model or self.model, "--workers", self.addresses(),
                                     "--listen", "127.0.0.1:0", "--metrics-port", "auto", "--ready-file",
                                     folder / "ready.json", *flags], 0)

    @contextlib.contextmanager
    def router(self, *flags):
        """A serving.Server while the block runs; then it must end well, and the workers stay."""
        folder = self.folder / f"router{self._routers}"
        self._routers += 1
        folder.mkdir()
        command = self.router_command(folder, *flags)
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                       start_new_session=True, env=serving.clean_environment())
        server = serving.Server(process, folder, serving.await_ready(process, folder, command))
        server.marker = str(folder)
        yield server
        server.stop()
        for worker in self.workers:
            assert worker.process.poll() is None or worker.process.returncode == -signal.SIGKILL, worker.log()


@contextlib.contextmanager
def running(model, workers: int, worker_flags=(), **options):
    """A Fleet while the block runs; then its workers end with SIGTERM, and no process of it stays. Options: listen, of
    each worker, where {folder} is its own."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="moe-e2e-"))
    try:
        fleet = Fleet(folder, model, workers, worker_flags, **options)
        yield fleet
        for worker in fleet.workers:
            if worker.process.poll() is None:
                code = worker.stop()
                assert code == 0, f"exit code {code} after SIGTERM to a worker; log:\n{worker.log()}"
    finally:
        serving.kill_all(folder.name)
        shutil.rmtree(folder, ignore_errors=True)


def run_router(fleet: Fleet, *flags, model=None) -> serving.Outcome:
    """Runs a router that is not expected to serve to its end."""
    with tempfile.TemporaryDirectory(dir=fleet.folder) as name:
        folder = pathlib.Path(name)
        done = subprocess.run(fleet.router_command(folder, *flags, model=model), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=serving.EXIT_SECONDS,
                              env=serving.clean_environment(), start_new_session=True)
        return serving.Outcome(done.returncode, done.stdout, done.stderr)
