"""A fleet without MPI: the tokens of one process, whatever happens to its workers; who is refused, and how workers and
routers end."""

import concurrent.futures
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile

import fleet
import grpc
import serving
from identity_test import Questions, ask_alone

EXPERTS = 8  # of the bundled model: as many redundant ones give each a second worker
REPLICATED = ("--redundant-experts", EXPERTS)
PROMPTS = [[random.Random(i).randrange(256) for _ in range(12)] for i in range(24)]
TOKENS = 40


class Stream:
    """Clients that call without a pause, each a request at a time, until the block is left."""

    def __init__(self, server: serving.Server, expected: list[list[int]], clients: int = 4):
        self.server, self.expected, self.clients = server, expected, clients
        self._pool = concurrent.futures.ThreadPoolExecutor(clients)
        self._stop = False
        self._futures: list[concurrent.futures.Future] = []
        self.finished = 0
        self.wrong: list[str] = []
        self.failures: list[str] = []

    def __enter__(self) -> "Stream":
        self._futures = [self._pool.submit(self._run, client) for client in range(self.clients)]
        self.wait_for(self.clients)
        return self

    def __exit__(self, *exception) -> None:
        self._stop = True
        for future in self._futures:
            future.result(serving.CALL_SECONDS)
        self._pool.shutdown()

    def wait_for(self, more: int) -> None:
        goal = self.finished + more
        serving.wait_until(lambda: self.finished >= goal, f"only {self.finished} requests of {goal} have finished")

    def _run(self, client: int) -> None:
        number = client
        while not self._stop:
            index = number % len(PROMPTS)
            number += self.clients
            try:
                result = self.server.generate([PROMPTS[index]], TOKENS)[0]
                if result.token_ids != self.expected[index]:
                    self.wrong.append(f"prompt {index}: {result.token_ids}")
                self.finished += 1
            except grpc.RpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")


def expected_tokens() -> list[list[int]]:
    with serving.running(serving.MOE) as server:
        return [result.token_ids for result in server.generate(PROMPTS, TOKENS)]


def up(server: serving.Server) -> list[bool]:
    return [rank.up for rank in server.get_cluster().ranks]


class FleetTest(serving.ServingTest):

    @classmethod
    def setUpClass(cls):
        cls.expected = expected_tokens()

    def test_the_bits_of_one_process_from_one_router_and_from_two(self):
        questions = Questions()
        with serving.running(serving.MOE) as server:
            alone = ask_alone(server, questions)
        with fleet.running(serving.MOE, 3) as workers, workers.router() as first, \
                workers.router("--transport", "grpc_streams") as second:
            self.assertEqual(alone.differences(ask_alone(first, questions)), [])
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                answers = [pool.submit(ask_alone, router, questions) for router in (first, second)]
                for answer in answers:
                    self.assertEqual(alone.differences(answer.result()), [])
            self.assertIn("rows lie in memory shared with the workers", first.log())
            self.assertIn("rows travel in streams", second.log())
            self.assertEqual(second.get_cluster().transport, "grpc_streams")
            state = first.get_cluster()
            self.assertEqual(state.transport, "grpc")
            self.assertEqual([rank.role for rank in state.ranks], ["router", "worker", "worker", "worker"])
            self.assertEqual([rank.control_address for rank in state.ranks][1:],
                             [worker.address for worker in workers.workers])
            self.assertEqual([rank.pid for rank in state.ranks][1:],
                             [worker.ready["pid"] for worker in workers.workers])

    def test_the_same_over_sockets_with_files_which_a_killed_worker_takes_again(self):
        with fleet.running(serving.MOE, 2, listen="unix:{folder}/socket") as workers:
            first, second = workers.workers
            self.assertTrue(first.address.startswith("unix:/"))
            with workers.router(*REPLICATED) as server:
                self.assertEqual([result.token_ids for result in server.generate(PROMPTS, TOKENS)], self.expected)
                first.kill()
                serving.wait_until(lambda: not up(server)[1], "a worker that was killed is up")
                first.start()
                serving.wait_until(lambda: all(up(server)), "a worker that has come back is not up")
                self.assertEqual([result.token_ids for result in server.generate(PROMPTS, TOKENS)], self.expected)
            taken = serving.run(["worker", "--model", serving.MOE, "--listen", second.address])
            self.assertEqual(taken.exit_code, 1, taken.stderr)
            self.assertIn(f"cannot listen on {second.address}: Address already in use", taken.stderr)
            self.assertEqual(second.stop(), 0)
            self.assertFalse(pathlib.Path(second.address.removeprefix("unix:")).exists(), "its socket has gone with it")

    def test_a_killed_worker_is_not_noticed_where_every_expert_has_a_replica(self):
        with fleet.running(serving.MOE, 3) as workers, workers.router(*REPLICATED) as server:
            with Stream(server, self.expected) as stream:
                for victim in (1, 0):
                    workers.workers[victim].kill()
                    stream.wait_for(20)
                    self.assertFalse(up(server)[victim + 1])
                    self.assertEqual(server.health(), "SERVING")
                    workers.workers[victim].start()
                    serving.wait_until(lambda: all(up(server)), "a worker that has come back is not up")
                    stream.wait_for(20)
            self.assertEqual((stream.failures, stream.wrong), ([], []))
            self.assertGreater(server.metric("moe_step_retries_total"), 0)
            self.assertEqual(server.metrics().by_label("moe_worker_returns_total", "rank"), {"1": 1, "2": 1, "3": 0})

    def test_without_replicas_failures_name_the_rank_and_service_resumes(self):
        with fleet.running(serving.MOE, 3) as workers, workers.router() as server:
            with Stream(server, self.expected) as stream:
                workers.workers[1].kill()
                serving.wait_until(lambda: len(stream.failures) >= stream.clients, "requests that do not fail")
                self.assertEqual(server.health(), "SERVING")
                self.assertEqual(up(server), [True, True, False, True])
                self.assertEqual(server.metrics().by_label("moe_worker_up", "rank"), {"1": 1, "2": 0, "3": 1})
                workers.workers[1].start()
                serving.wait_until(lambda: all(up(server)), "a worker that has come back is not up")
                failures = len(stream.failures)
                stream.wait_for(20)
                self.assertLessEqual(len(stream.failures), failures + stream.clients)  # those that were in flight
            self.assertEqual(stream.wrong, [])
            for failure in stream.failures:
                self.assertIn("UNAVAILABLE: ", failure)
                self.assertIn(f"rank 2 ({workers.workers[1].address})", failure)

    def test_a_silent_worker_is_lost_at_the_deadline_and_found_when_it_speaks(self):
        with fleet.running(serving.MOE, 3) as workers, \
                workers.router(*REPLICATED, "--exchange-timeout", 3) as server:
            with Stream(server, self.expected) as stream:
                workers.workers[2].signal(signal.SIGSTOP)
                serving.wait_until(lambda: not up(server)[3], "a silent worker is still up")
                stream.wait_for(20)
                workers.workers[2].signal(signal.SIGCONT)
                serving.wait_until(lambda: all(up(server)), "a worker that speaks again is not up")
                stream.wait_for(20)
            self.assertEqual((stream.failures, stream.wrong), ([], []))

    def test_without_any_worker_the_router_waits_for_them(self):
        with fleet.running(serving.MOE, 2) as workers, workers.router() as server:
            for worker in workers.workers:
                worker.kill()
            self.assert_refused(grpc.StatusCode.UNAVAILABLE, "rank ", call=lambda: server.generate([PROMPTS[0]], 4))
            serving.wait_until(lambda: server.health() == "NOT_SERVING", "health says SERVING without any worker")
            for worker in workers.workers:
                worker.start()
            serving.wait_until(lambda: all(up(server)), "workers that have come back are not up")
            self.assertEqual(server.health(), "SERVING")
            self.assertEqual(server.generate([PROMPTS[0]], TOKENS)[0].token_ids, self.expected[0])

    def test_a_worker_that_ends_has_answered_what_had_arrived(self):
        with fleet.running(serving.MOE, 3) as workers, workers.router(*REPLICATED) as server:
            with Stream(server, self.expected) as stream:
                self.assertEqual(workers.workers[0].stop(), 0)
                stream.wait_for(20)
                workers.workers[0].start()
                serving.wait_until(lambda: all(up(server)), "a worker that has come back is not up")
            self.assertEqual((stream.failures, stream.wrong), ([], []))


class RefusalTest(serving.ServingTest):

    def assert_refused_router(self, outcome: serving.Outcome, *needles: str) -> None:
        self.assertEqual(outcome.exit_code, 1, outcome.stderr)
        self.assertEqual(len(outcome.own_lines()), 1, outcome.stderr)
        for needle in needles:
            self.assertIn(needle, outcome.own_lines()[0])

    def test_another_model_weight_type_or_shard_is_refused_by_name(self):
        with fleet.running(serving.MOE, 2) as workers:
            first = f"rank 1 ({workers.workers[0].address})"
            self.assert_refused_router(
                fleet.run_router(workers, model=serving.MODELS / "eight-languages-collapsed"),
                first, "it serves the checkpoint ", ", the router ")
            self.assert_refused_router(fleet.run_router(workers, "--weight-type", "f32"),
                                       first, "its weight type is bf16, the router's f32")
            self.assert_refused_router(fleet.run_router(workers, "--max-step-tokens", 1024), first, "--max-step-tokens")
            with workers.router() as server:
                self.assert_refused_router(fleet.run_router(workers, "--placement", "round_robin"),
                                           first, "another router has made it worker 0 of 2, generation 1")
                self.assertEqual(server.generate([PROMPTS[0]], 4)[0].reason, "LENGTH")
            # The first has gone, so the other gets its way.
            with workers.router("--placement", "round_robin") as server:
                self.assertEqual(list(server.get_cluster().ranks[1].hosted[0].experts), [0, 2, 4, 6])
                self.assertEqual(server.generate([PROMPTS[0]], 4)[0].reason, "LENGTH")

    def test_a_worker_that_is_not_there_is_waited_for(self):
        with fleet.running(serving.MOE, 2) as workers:
            workers.workers[1].kill()
            # The other one has loaded long before.
            self.assert_refused_router(fleet.run_router(workers, "--load-timeout", 5),
                                       f"rank 2 ({workers.workers[1].address})", "--load-timeout")
            with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
                waiting = pool.submit(lambda: stack.enter_context(workers.router()))
                workers.workers[1].start()
                self.assertEqual(waiting.result(serving.START_SECONDS).generate([[1]], 2)[0].reason, "LENGTH")

    def test_flags_of_another_role_are_refused_by_name(self):
        for flags, needle in ((["worker", "--placement", "linear"], "--placement is for the router"),
                              (["worker", "--kv-tokens", "64"], "--kv-tokens is for the router"),
                              (["worker", "--workers", "127.0.0.1:1"], "--workers"),
                              (["worker", "--transport", "mpi"], "--transport"),
                              (["worker", "--backend", "cuda"], "--backend cuda: "),
                              (["router", "--workers", "127.0.0.1:1", "--backend", "cpu"], "--backend is for"),
                              (["router"], "--workers is required"),
                              (["router", "--workers", "nowhere"], "nowhere"),
                              (["router", "--workers", "127.0.0.1:1,unix:socket"], "unix:socket"),
                              (["worker", "--listen", "unix:socket"], "unix:socket"),
                              (["router", "--workers", "127.0.0.1:1", "--transport", "inprocess"], "--transport"),
                              (["--transport", "grpc"], "moe_serve router"),
                              (["--workers", "127.0.0.1:1"], "--workers")):
            with self.subTest(flags=flags):
                outcome = serving.run([*flags, "--model", serving.MOE])
                self.assertEqual(outcome.exit_code, 2, outcome.stderr)
                self.assertIn(needle, outcome.stderr)

    def test_a_model_without_experts_has_no_fleet(self):
        outcome = serving.run(["worker", "--model", serving.MODELS / "eight-languages-dense"])
        self.assertEqual(outcome.exit_code, 1, outcome.stderr)
        self.assertIn("no experts", outcome.stderr)


class WithoutMpiTest(serving.ServingTest):

    @staticmethod
    def mpi_plugins(pid: int) -> list[str]:
        """What Open MPI loads when it is initialised."""
        maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
        return sorted({line.split("/")[-1] for line in maps.splitlines() if "/mca_" in line})

    def test_no_process_of_a_fleet_starts_mpi(self):
        with serving.running(serving.MOE, 2) as server:
            self.assertTrue(self.mpi_plugins(server.pid), "the test cannot tell MPI from none")
        with fleet.running(serving.MOE, 2) as workers, workers.router() as server:
            server.generate([[1]], 2)
            for pid in (server.pid, *(worker.ready["pid"] for worker in workers.workers)):
                self.assertEqual(self.mpi_plugins(pid), [])


class TlsTest(serving.ServingTest):

    def setUp(self):
        if shutil.which("openssl") is None:
            self.skipTest("openssl, which makes the certificates, is not installed")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="moe-e2e-tls-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.run_openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                         "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
        self.run_openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=node",
                         "-keyout", "node.key", "-out", "node.csr")
        (self.folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
        self.run_openssl("x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                         "-days", "2", "-extfile", "extensions", "-out", "node.pem")

    def run_openssl(self, *arguments) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def flags(self) -> list[str]:
        return [f"--tls-{name}={self.folder / file}"
                for name, file in (("cert", "node.pem"), ("key", "node.key"), ("ca", "ca.pem"))]

    def test_clients_router_and_workers_speak_mutual_tls(self):
        with fleet.running(serving.MOE, 2, worker_flags=self.flags()) as workers:
            plain = fleet.run_router(workers, "--load-timeout", 1)
            self.assertEqual(plain.exit_code, 1, plain.stderr)
            self.assertIn(f"rank 1 ({workers.workers[0].address})", plain.stderr)
            with workers.router(*self.flags()) as server:
                credentials = grpc.ssl_channel_credentials((self.folder / "ca.pem").read_bytes(),
                                                           (self.folder / "node.key").read_bytes(),
                                                           (self.folder / "node.pem").read_bytes())
                request = serving.generate_request([PROMPTS[0]], 4)
                with grpc.secure_channel(server.address, credentials) as channel:
                    events = serving.pb.InferenceStub(channel).Generate(request, timeout=serving.CALL_SECONDS)
                    self.assertEqual(sum(len(event.token_ids) for event in events), 4)
                stranger = grpc.ssl_channel_credentials((self.folder / "ca.pem").read_bytes())
                with grpc.secure_channel(server.address, stranger) as channel:
                    self.assert_refused(grpc.StatusCode.UNAVAILABLE, call=lambda: serving.pb.InferenceStub(
                        channel).Generate(request, timeout=serving.CALL_SECONDS))


if __name__ == "__main__":
    assert os.environ.get("OMPI_COMM_WORLD_SIZE") is None
    serving.main()
