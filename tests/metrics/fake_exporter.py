#!/usr/bin/python3
"""Serves every metric of metric_table.py as a cluster under load would, one HTTP server a rank, on free ports.
Usage: fake_exporter.py --ready-file FILE [--ranks N]; runs until it is killed. For tests of what reads metrics."""

import argparse
import http.server
import itertools
import json
import os
import pathlib
import threading
import time

import metric_table


def value(metric: metric_table.Metric, position: int, seconds: float) -> float:
    """Series differ from each other; counters rise with time and gauges are never the same twice."""
    if metric.kind == "counter":
        return (position + 1) * 10 * seconds
    if metric.name == "process_start_time_seconds":
        return time.time() - seconds
    return position + 1 + (seconds % 7) / 10


def histogram_lines(name: str, labels: str, seconds: float) -> list[str]:
    """100 observations a second, one more bucket filled for each of the first ten bounds."""
    bounds = [2**i for i in range(12)] if name == "moe_batch_tokens" else metric_table.SECONDS
    count = int(100 * seconds)
    lines, total = [], 0.0
    for index, bound in enumerate(bounds):
        share = min(1, (index + 1) / 10)
        lines.append(f'{name}_bucket{{{labels}le="{bound:.6g}"}} {int(count * share)}')
        total += bound * count / 10 if index < 10 else 0
    plain = f"{{{labels[:-1]}}}" if labels else ""
    lines.append(f'{name}_bucket{{{labels}le="+Inf"}} {count}')
    return lines + [f"{name}_sum{plain} {total}", f"{name}_count{plain} {count}"]


def exposition(ranks: int, rank: int, path: str, seconds: float) -> str | None:
    """The text of one scrape, or None for a path that this rank does not serve."""
    if path == "/metrics/experts" and rank == 0:
        wanted = {metric_table.EXPERT_PATH}
    elif path == "/metrics":
        wanted = {metric_table.EVERY} | ({metric_table.ROUTER} if rank == 0 else set())
        wanted |= {metric_table.WORKER} if rank > 0 or ranks == 1 else set()
    else:
        return None
    lines = []
    for metric in metric_table.METRICS:
        if metric.where not in wanted:
            continue
        lines += [f"# HELP {metric.name} Made up.", f"# TYPE {metric.name} {metric.kind}"]
        combinations = itertools.product(*(metric_table.label_values(label, ranks) for label in metric.labels))
        for position, combination in enumerate(combinations):
            labels = "".join(f'{label}="{text}",' for label, text in zip(metric.labels, combination))
            if metric.kind == "histogram":
                lines += histogram_lines(metric.name, labels, seconds)
            else:
                plain = f"{{{labels[:-1]}}}" if labels else ""
                lines.append(f"{metric.name}{plain} {value(metric, position + rank, seconds)!r}")
    return "\n".join(lines) + "\n"


def serve_rank(ranks: int, rank: int, start: float) -> str:
    """Starts serving in a thread; the address bound."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = exposition(ranks, rank, self.path, time.time() - start + 100)
            self.send_response(404 if text is None else 200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_address[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-file", required=True)
    parser.add_argument("--ranks", type=int, default=3)
    options = parser.parse_args()
    start = time.time()
    addresses = [serve_rank(options.ranks, rank, start) for rank in range(options.ranks)]
    ready = {"grpc": "127.0.0.1:1", "http": None, "metrics": addresses, "ranks": options.ranks, "pid": os.getpid()}
    temporary = pathlib.Path(options.ready_file + ".new")
    temporary.write_text(json.dumps(ready))
    temporary.rename(options.ready_file)
    threading.Event().wait()


if __name__ == "__main__":
    main()
