#!/usr/bin/python3
"""Stands in for moe_serve in the test of bench/cluster_load_test.sh: the same flags, ready file, gRPC service and
metrics, no model. Under mpirun, rank 0 does everything (it serves the metrics of all ranks) and the others wait for it.
Usage: fake_moe_serve.py STUBS FAULT --model D --listen A --metrics-port auto --ready-file F
FAULT: none, lose-token (counts one more than it sends), lose-row (a worker computes one row less), fail-exit."""

import concurrent.futures
import http.server
import json
import os
import pathlib
import signal
import sys
import threading
import time

EXPERTS, PER_TOKEN, LAYERS = 4, 2, 3
BOUNDS = (0.001, 0.01, 0.1, 1)
HISTOGRAMS = ("time_to_first_token", "time_per_output_token", "inter_token", "e2e")


class Counts:
    """What all ranks have counted so far."""

    def __init__(self, ranks: int, fault: str):
        self.lock = threading.Lock()
        self.ranks, self.fault = ranks, fault
        self.prompt = self.generated = self.finished = 0

    def text(self, rank: int) -> str:
        with self.lock:
            pairs = (self.prompt + self.generated) * PER_TOKEN * LAYERS
            workers = max(1, self.ranks - 1)
            lines = ["process_cpu_seconds_total 1.5", "process_resident_memory_bytes 1e+07"]
            if rank == 0:
                lines += [f"moe_prompt_tokens_total {self.prompt}", f"moe_generated_tokens_total {self.generated}",
                          f'moe_requests_total{{outcome="finished"}} {self.finished}']
                lines += [f'moe_requests_total{{outcome="{outcome}"}} 0' for outcome in ("cancelled", "rejected", "failed")]
                lines += [f'moe_expert_tokens_total{{expert="{e}"}} {share(pairs, EXPERTS, e)}' for e in range(EXPERTS)]
                first = 1 if self.ranks > 1 else 0
                lines += [f'moe_rank_rows_total{{rank="{first + w}"}} {share(pairs, workers, w)}' for w in range(workers)]
                lines += [line for name in HISTOGRAMS for line in self.histogram(f"moe_request_{name}_seconds")]
            if rank > 0 or self.ranks == 1:
                worker = max(0, rank - 1)
                lost = 1 if self.fault == "lose-row" and worker == 0 and pairs else 0
                lines += [f"moe_worker_rows_total {share(pairs, workers, worker) - lost}",
                          "moe_worker_busy_seconds_total 0.25"]
            return "\n".join(lines) + "\n"

    def histogram(self, name: str) -> list[str]:
        lines = [f'{name}_bucket{{le="{bound}"}} {self.finished if bound >= 0.01 else 0}' for bound in BOUNDS]
        return lines + [f'{name}_bucket{{le="+Inf"}} {self.finished}', f"{name}_sum {self.finished * 0.005}",
                        f"{name}_count {self.finished}"]


def share(total: int, parts: int, part: int) -> int:
    return total // parts + (1 if part < total % parts else 0)


def serve_metrics(counts: Counts, rank: int) -> str:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = counts.text(rank).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_port}"


def serve_inference(stubs: str, counts: Counts) -> str:
    sys.path.insert(0, stubs)
    import grpc
    from moe.v1 import inference_pb2, inference_pb2_grpc

    class Inference(inference_pb2_grpc.InferenceServicer):
        def GetModel(self, request, context):
            return inference_pb2.ModelDescription(name="fake", vocab_size=256, context_length=512)

        def Generate(self, request, context):
            for index, sequence in enumerate(request.sequences):
                for token in range(request.max_new_tokens):
                    yield inference_pb2.GenerateEvent(sequence=index, token_ids=[token % 256])
                finish = inference_pb2.Finish(
                    reason=inference_pb2.FINISH_REASON_LENGTH,
                    usage=inference_pb2.Usage(prompt_tokens=len(sequence.token_ids),
                                              generated_tokens=request.max_new_tokens))
                with counts.lock:  # before the client can know that it is over
                    counts.prompt += len(sequence.token_ids)
                    counts.generated += request.max_new_tokens
                    counts.generated += 1 if counts.fault == "lose-token" and request.request_id == "moe-bench-3" else 0
                    counts.finished += 1
                yield inference_pb2.GenerateEvent(sequence=index, finish=finish)

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    inference_pb2_grpc.add_InferenceServicer_to_server(Inference(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    serve_inference.server = server  # alive as long as the process
    return f"127.0.0.1:{port}"


def main(stubs: str, fault: str, *arguments: str) -> int:
    ready = pathlib.Path(arguments[arguments.index("--ready-file") + 1])
    done = ready.with_suffix(".done")
    ranks, rank = (int(os.environ.get(f"OMPI_COMM_WORLD_{name}", default)) for name, default in (("SIZE", 1), ("RANK", 0)))
    if rank > 0:
        while not done.exists():
            time.sleep(0.05)
        return 0
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    counts = Counts(ranks, fault)
    state = {"grpc": serve_inference(stubs, counts), "http": None, "ranks": ranks, "pid": os.getpid(),
             "metrics": [serve_metrics(counts, r) for r in range(ranks)]}
    new = ready.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.rename(ready)
    stop.wait()
    done.touch()
    return 3 if fault == "fail-exit" else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
