"""Much work for a server with few requests and few events, so that a test can look at a busy server at leisure."""

import concurrent.futures

import grpc
import serving

# One position a step and one sequence at a time, so that few requests and few events make much work, however fast the
# machine is.
SLOW = ("--prefill-chunk", 1, "--max-sequences", 1)
LONG_PROMPT = [i % 256 for i in range(480)]
TOKENS = 8


class Load:
    """Calls that are all accepted, most of their sequences queued, when the block is entered. Each takes 487 steps of
    a server with the flags SLOW, a fraction of a millisecond each at the very least."""

    def __init__(self, server: serving.Server, calls: int, sequences: int = 1):
        self.server, self.calls, self.sequences = server, calls, sequences
        self._pool = concurrent.futures.ThreadPoolExecutor(calls)
        self._futures: list[concurrent.futures.Future] = []
        self._accepted_before = 0.0

    @staticmethod
    def endless(server: serving.Server) -> "Load":
        """Nearly a hundred thousand steps, ten seconds and more: what is to be cut short."""
        return Load(server, calls=10, sequences=20)

    def __enter__(self) -> "Load":
        self._accepted_before = self._accepted_at_rest()
        self._futures = [self._pool.submit(self._run) for _ in range(self.calls)]
        serving.wait_until(lambda: self._accepted() - self._accepted_before == self.calls * self.sequences,
                           "not all of the load is accepted")
        return self

    def __exit__(self, *exception) -> None:
        self._pool.shutdown()

    def _accepted(self) -> float:
        metrics = self.server.metrics()
        return sum(metrics.get(name) for name in ("moe_requests_running", "moe_requests_waiting")) + metrics.get(
            "moe_requests_total", outcome="finished")

    def _accepted_at_rest(self) -> float:
        """Not between the end of another load's sequence and the queue's figures without it."""
        before = self._accepted()
        while before != (now := self._accepted()):
            before = now
        return before

    def _run(self) -> tuple[list[serving.Continuation], grpc.RpcError | None]:
        results = [serving.Continuation() for _ in range(self.sequences)]
        request = serving.generate_request([LONG_PROMPT] * self.sequences, TOKENS)
        try:
            for event in self.server.inference.Generate(request, timeout=serving.CALL_SECONDS):
                results[event.sequence].add(event)
        except grpc.RpcError as error:
            return results, error
        return results, None

    def waiting(self) -> float:
        return self.server.metric("moe_requests_waiting")

    def results(self) -> list[tuple[list[serving.Continuation], grpc.RpcError | None]]:
        """Of every call, once it has ended: what came of each sequence, and the call's error."""
        return [future.result(serving.CALL_SECONDS) for future in self._futures]

    def errors(self) -> list[grpc.RpcError]:
        return [error for _, error in self.results() if error is not None]
