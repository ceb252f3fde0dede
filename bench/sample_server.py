#!/usr/bin/env python3
"""Watches a running moe_serve: one line a second of what it did in that second, as CSV, from its /metrics.

  moe_serve --model DIR --metrics-port 9400 &
  bench/sample_server.py --metrics 127.0.0.1:9400 --seconds 60 > samples.csv
  bench/plot_balancing.py timeline samples.csv

Columns: seconds (since the start, at the end of the interval), tokens_per_s (generated), inter_token_p50 and
inter_token_p99 (seconds between two tokens of a request; linear within a bucket of moe_request_inter_token_seconds, whose
bounds double; empty without a token), step_p99 (seconds), placement_generation, migrations (changes of placement that
ended in the interval), migration_bytes (that ranks loaded for them). Exit code: 0 done, 1 the server went away, 2 bad
usage."""

import argparse
import csv
import sys
import time
import urllib.error

import exposition

COLUMNS = ("seconds", "tokens_per_s", "inter_token_p50", "inter_token_p99", "step_p99", "placement_generation",
           "migrations", "migration_bytes")


def row(before: exposition.Snapshot, after: exposition.Snapshot, elapsed: float, interval: float) -> dict:
    """What happened between two snapshots that are `interval` seconds apart."""

    def counted(name: str) -> float:
        return after.total(name) - before.total(name)

    def quantile(q: float, histogram: str) -> float | None:
        return exposition.quantile(q, exposition.difference(after.buckets(histogram), before.buckets(histogram)))

    return {"seconds": round(elapsed, 3),
            "tokens_per_s": round(counted("moe_generated_tokens_total") / interval, 3),
            "inter_token_p50": quantile(0.5, "moe_request_inter_token_seconds"),
            "inter_token_p99": quantile(0.99, "moe_request_inter_token_seconds"),
            "step_p99": quantile(0.99, "moe_step_seconds"),
            "placement_generation": int(after.total("moe_placement_generation")),
            "migrations": int(counted("moe_migrations_total")),
            "migration_bytes": int(counted("moe_migration_bytes_total"))}


def sample(address: str, seconds: float, interval: float, out) -> None:
    """Lines appear as they are taken."""
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    start = last = time.monotonic()
    before = exposition.Snapshot.scrape([address])
    due = start
    while due - start < seconds - interval / 2:
        due += interval
        time.sleep(max(0.0, due - time.monotonic()))
        after = exposition.Snapshot.scrape([address])
        now = time.monotonic()
        writer.writerow(row(before, after, now - start, now - last))
        out.flush()
        before, last = after, now


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", required=True, metavar="HOST:PORT", help="of the router")
    parser.add_argument("--seconds", type=float, default=60, help="how long (60)")
    parser.add_argument("--interval", type=float, default=1, help="seconds of a line (1)")
    options = parser.parse_args(arguments)
    if not 0 < options.interval <= options.seconds:
        print(f"sample_server.py: --interval {options.interval:g}: more than 0, at most --seconds "
              f"{options.seconds:g}", file=sys.stderr)
        return 2
    try:
        sample(options.metrics, options.seconds, options.interval, sys.stdout)
    except (urllib.error.URLError, OSError) as error:
        print(f"sample_server.py: {options.metrics}: {getattr(error, 'reason', error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
