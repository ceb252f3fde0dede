"""How a job ends: drained by a signal or a call with everything accepted finished, at once by a second signal, and when
a process of it dies or falls silent. Whatever happens, the job ends and no process stays."""

import contextlib
import os
import signal
import subprocess
import tempfile

import grpc
import serving
from load import LONG_PROMPT, SLOW, TOKENS, Load


class EndingTest(serving.ServingTest):

    def assert_ends(self, server: serving.Server, code: int | None = None) -> None:
        """With this exit code, or with any but 0, and leaving nothing."""
        given = server.wait_for_exit()
        if code is None:
            self.assertNotEqual(given, 0, server.log())
        else:
            self.assertEqual(given, code, server.log())
        serving.wait_until(lambda: not server.processes(), "processes of a job that has ended")


class DrainTest(EndingTest):

    def check_drain(self, ranks: int, begin) -> None:
        """begin(server) starts a drain, which must finish everything accepted and refuse what comes after."""
        with serving.running(serving.MOE, ranks, *SLOW, "--drain-timeout", 600, expect_clean_stop=False) as server:
            with Load(server, calls=20) as load:
                self.assertGreater(load.waiting(), 0)
                begin(server)
                serving.wait_until(lambda: server.health() == "NOT_SERVING", "health does not turn NOT_SERVING")
                self.assertEqual(server.health("moe.v1.Inference"), "NOT_SERVING")
                self.assertTrue(server.get_cluster().draining)
                self.assert_refused(grpc.StatusCode.UNAVAILABLE, "draining", call=lambda: server.generate([[1]], 1))
                self.assert_refused(grpc.StatusCode.UNAVAILABLE, "draining", call=lambda: server.score([[1, 2]]))
                with contextlib.closing(server.connect()) as late:
                    stub = serving.pb.InferenceStub(late)
                    request = serving.generate_request([[1]], 1)
                    self.assert_refused(grpc.StatusCode.UNAVAILABLE, "draining",
                                        call=lambda: stub.Generate(request, timeout=serving.CALL_SECONDS))
                for (result,), error in load.results():
                    self.assertIsNone(error)
                    self.assertEqual((len(result.token_ids), result.reason), (TOKENS, "LENGTH"))
            self.assert_ends(server, 0)

    def test_signals_to_rank_0_drain(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            with self.subTest(signal=number.name):
                self.check_drain(3, lambda server: server.signal(number))

    def test_a_signal_to_the_only_process_drains(self):
        self.check_drain(0, lambda server: server.signal(signal.SIGTERM))

    def test_sigusr1_to_mpirun_drains(self):
        self.check_drain(3, lambda server: server.process.send_signal(signal.SIGUSR1))

    def test_the_drain_call_drains(self):
        request = serving.pb.DrainRequest()
        self.check_drain(3, lambda server: server.cluster.Drain(request, timeout=serving.CALL_SECONDS))

    def test_workers_ignore_the_signals(self):
        with serving.running(serving.MOE, 3) as server:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                os.kill(server.rank_pid(1), number)
            self.assertEqual(server.generate([[50, 53, 32]], 100)[0].reason, "LENGTH")
            self.assertEqual(server.health(), "SERVING")

    def test_what_a_drain_cannot_finish_in_time_fails(self):
        with serving.running(serving.MOE, 3, *SLOW, "--drain-timeout", 1, expect_clean_stop=False) as server:
            with Load.endless(server) as load:
                server.signal(signal.SIGTERM)
                unfinished = 0
                for results, error in load.results():
                    self.assertLessEqual({result.reason for result in results}, {"LENGTH", "FAILED"})
                    finished = [result for result in results if result.reason == "LENGTH"]
                    self.assertTrue(all(len(result.token_ids) == TOKENS for result in finished))
                    failed = [result for result in results if result.reason == "FAILED"]
                    unfinished += len(failed)
                    for result in failed:
                        self.assertIn("stopped before", result.finish.message)
                    # The call fails when all of its sequences do.
                    self.assertEqual(error is not None, len(failed) == len(results))
                    if error is not None:
                        self.assertEqual((error.code(), error.details()),
                                         (grpc.StatusCode.UNAVAILABLE, failed[0].finish.message))
                self.assertTrue(load.errors())
            self.assert_ends(server, 1)
            self.assertEqual(server.log().count(f"{unfinished} sequence(s) did not finish"), 1, server.log())

    def test_one_failed_sequence_does_not_fail_its_call(self):
        with serving.running(serving.MOE, 0, *SLOW, "--drain-timeout", 0, expect_clean_stop=False) as server:
            request = serving.generate_request([LONG_PROMPT] * 500, TOKENS)
            results = [serving.Continuation() for _ in request.sequences]
            for event in server.inference.Generate(request, timeout=serving.CALL_SECONDS):
                results[event.sequence].add(event)
                if event.sequence == 0 and event.HasField("finish"):
                    server.signal(signal.SIGTERM)
            self.assertEqual((results[0].reason, results[-1].reason), ("LENGTH", "FAILED"))
            self.assertEqual({result.reason for result in results}, {"LENGTH", "FAILED"})
            self.assert_ends(server, 1)

    def test_a_second_signal_stops_at_once(self):
        with serving.running(serving.MOE, 3, *SLOW, "--drain-timeout", 3600, expect_clean_stop=False) as server:
            with Load.endless(server) as load:
                server.signal(signal.SIGTERM)
                serving.wait_until(lambda: server.health() == "NOT_SERVING", "health does not turn NOT_SERVING")
                server.signal(signal.SIGTERM)
                self.assert_ends(server, 1)
                self.assertEqual({error.code() for error in load.errors()}, {grpc.StatusCode.UNAVAILABLE})


class LostProcessTest(EndingTest):

    def test_no_process_outlives_mpirun(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for busy in (False, True):
                with self.subTest(signal=number.name, busy=busy):
                    with serving.running(serving.MOE, 3, *SLOW, expect_clean_stop=False) as server:
                        self.assertEqual(len(server.processes()), 4)  # mpirun's own too
                        with Load.endless(server) if busy else contextlib.nullcontext() as load:
                            server.process.send_signal(number)
                            self.assert_ends(server)
                            self.assertTrue(not busy or load.errors())

    def test_no_process_outlives_mpirun_killed_while_it_starts(self):
        with tempfile.TemporaryDirectory(prefix="moe-e2e-") as folder:
            command = serving.command_line(["--model", serving.MOE, "--listen", "127.0.0.1:0", "--metrics-port", "auto",
                                            "--ready-file", f"{folder}/ready.json"], ranks=4)
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                           stderr=subprocess.DEVNULL, start_new_session=True,
                                           env=serving.clean_environment())
                serving.wait_until(lambda: len(serving.processes_of(folder)) > 1, "ranks that do not start")
                process.kill()
                serving.wait_until(lambda: not serving.processes_of(folder), "processes of a job that was killed")
            finally:
                serving.kill_all(folder)
                process.wait()

    def test_a_killed_worker_ends_the_job(self):
        for transport in ("mpi", "grpc"):
            with self.subTest(transport), serving.running(serving.MOE, 3, *SLOW, "--transport", transport,
                                                          expect_clean_stop=False) as server:
                victim = server.rank_pid(2)
                with Load.endless(server) as load:
                    os.kill(victim, signal.SIGKILL)
                    self.assert_ends(server)
                    self.assertTrue(load.errors())

    def test_a_silent_worker_fails_what_runs_and_ends_the_job(self):
        for transport in ("mpi", "grpc"):
            with self.subTest(transport), serving.running(serving.MOE, 3, *SLOW, "--transport", transport,
                                                          "--exchange-timeout", 2, expect_clean_stop=False) as server:
                victim = server.rank_pid(2)
                with Load.endless(server) as load:
                    os.kill(victim, signal.SIGSTOP)  # serving.running kills it in the end, whatever happens
                    errors = load.errors()
                    self.assertGreaterEqual(len(errors), load.calls - 1)  # one may have a sequence that finished before
                    self.assertEqual({error.code() for error in errors}, {grpc.StatusCode.UNAVAILABLE})
                    for error in errors:
                        self.assertIn("rank 2", error.details())
                    self.assert_ends(server)
                self.assertIn("rank 2", server.log())


if __name__ == "__main__":
    serving.main()
