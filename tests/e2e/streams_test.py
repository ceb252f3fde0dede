"""Many concurrent streams of mixed lengths, a third of them cancelled at random moments: nothing lost, nothing doubled,
KV use back to 0, memory flat, and the metrics count the same."""

import concurrent.futures
import dataclasses
import pathlib
import random

import grpc
import serving

STREAMS = 200
ROUNDS = 8
RANKS = 3
# Memory grows now and then without a leak: gRPC starts another thread, the allocator another arena. A leak is what grows in
# every round. A stream has a prompt, its output and gRPC's state of a call, kilobytes each, so that a leak of any of these
# adds 200 times that to each round; the least growth of eight rounds must be under 64 KiB, 330 bytes a stream. The kernel
# counts resident pages in batches of 32 a processor (128 KiB); what it sums up over the mappings is exact.
MEMORY_GROWTH_BYTES = 64 * 1024


@dataclasses.dataclass
class Stream:
    prompt: list[int]
    length: int
    cancel_after: int | None = None  # tokens; None: not cancelled


def make_streams(seed: int) -> list[Stream]:
    rng = random.Random(seed)
    streams = [Stream([rng.randrange(256) for _ in range(rng.randrange(1, 60))], rng.randrange(2, 64))
               for _ in range(STREAMS)]
    for stream in rng.sample(streams, STREAMS // 3):
        stream.cancel_after = rng.randrange(stream.length)
    return streams


@dataclasses.dataclass
class Received:
    result: serving.Continuation
    cancelled: bool = False


def run_stream(server: serving.Server, stream: Stream, cancel: bool) -> Received:
    """One call to its end, or to the token after which it is cancelled."""
    received = Received(serving.Continuation())
    request = serving.generate_request([stream.prompt], stream.length)
    call = server.inference.Generate(request, timeout=serving.CALL_SECONDS)
    cancel_after = stream.cancel_after if cancel else None
    if cancel_after == 0:  # wherever it is by then: on the way, queued or running
        call.cancel()
        received.cancelled = True
    try:
        for event in call:
            received.result.add(event)
            if cancel_after is not None and len(received.result.token_ids) >= cancel_after and not received.cancelled:
                received.cancelled = True
                call.cancel()
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.CANCELLED or not received.cancelled:
            raise
    return received


def run_all(server: serving.Server, streams: list[Stream], cancel: bool) -> list[Received]:
    with concurrent.futures.ThreadPoolExecutor(len(streams)) as pool:
        return list(pool.map(lambda stream: run_stream(server, stream, cancel), streams))


def anonymous_bytes(pid: int) -> int:
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"the kernel says nothing of the memory of process {pid}")


class StreamsTest(serving.ServingTest):

    def check_round(self, streams: list[Stream], all_received: list[Received], alone: list[list[int]]) -> None:
        for i, (stream, received, expected) in enumerate(zip(streams, all_received, alone, strict=True)):
            tokens = received.result.token_ids
            if received.cancelled:
                self.assertEqual(tokens, expected[:len(tokens)], f"stream {i}")
            else:
                self.assertEqual((tokens, received.result.reason), (expected, "LENGTH"), f"stream {i}")
                self.assertEqual(received.result.finish.usage.generated_tokens, stream.length)
                self.assertEqual(received.result.finish.usage.prompt_tokens, len(stream.prompt))

    def memory(self, server: serving.Server) -> list[int]:
        """Bytes of each rank that are its own, not of a file."""
        return [anonymous_bytes(rank.pid) for rank in server.get_cluster().ranks]

    def test_nothing_is_lost_and_nothing_stays(self):
        streams = make_streams(seed=5)
        with serving.running(serving.MOE, RANKS) as server:
            alone = [server.generate([stream.prompt], stream.length)[0].token_ids for stream in streams]
            memory = []
            for _ in range(1 + ROUNDS):  # the first brings threads and arenas near their size
                received = run_all(server, streams, cancel=True)
                self.check_round(streams, received, alone)
                cancelled = sum(stream.cancelled for stream in received)
                self.assertGreater(cancelled, STREAMS // 4)
                server.wait_until_idle()
                memory.append(self.memory(server))
            for rank in range(server.ranks):
                growth = [after[rank] - before[rank] for before, after in zip(memory, memory[1:])]
                self.assertLessEqual(min(growth), MEMORY_GROWTH_BYTES, f"rank {rank}: {growth}")

    def test_outcomes_and_tokens_add_up(self):
        streams = make_streams(seed=6)
        with serving.running(serving.MOE, RANKS) as server:
            outcome = lambda name: server.metric("moe_requests_total", outcome=name)
            complete = run_all(server, streams, cancel=False)
            server.wait_until_idle()
            self.assertEqual(outcome("finished"), STREAMS)
            received = sum(len(one.result.token_ids) for one in complete)
            self.assertEqual(received, sum(stream.length for stream in streams))
            self.assertEqual(server.metric("moe_generated_tokens_total"), received)
            self.assertEqual(server.metric("moe_prompt_tokens_total"), sum(len(stream.prompt) for stream in streams))

            again = run_all(server, streams, cancel=True)
            server.wait_until_idle()
            finished = sum(not one.cancelled for one in again)
            unseen = sum(stream.cancel_after == 0 for stream in streams)  # a call cancelled at once may never arrive
            ended = outcome("finished") + outcome("cancelled") - STREAMS
            self.assertGreaterEqual(outcome("finished") - STREAMS, finished)
            self.assertGreater(outcome("cancelled"), 0)
            self.assertLessEqual(ended, STREAMS)
            self.assertGreaterEqual(ended, STREAMS - unseen)
            self.assertEqual((outcome("rejected"), outcome("failed")), (0, 0))
            # What was on its way when a client went is counted, and nobody has received it.
            counted = server.metric("moe_generated_tokens_total") - received
            self.assertGreaterEqual(counted, sum(len(one.result.token_ids) for one in again))
            self.assertLess(counted, received)


if __name__ == "__main__":
    serving.main()
