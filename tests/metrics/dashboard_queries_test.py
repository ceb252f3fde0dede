#!/usr/bin/python3
"""Runs every query of the Grafana dashboard, and every recording rule, against a real Prometheus scraping a cluster.

Each query must be accepted and give a series with a finite value before the deadline. A quantile of no observations is
not finite: the cluster must be under load while this runs. Without --ready-file and --targets the cluster is
fake_exporter.py, and the program first proves that it notices queries which are wrong or find nothing.

Usage: dashboard_queries_test.py [--ready-file FILE | --targets HOST:PORT,…] [--expert-metrics]
Needs Debian's package prometheus. Exit code 0: all good; 1: a query failed, named on stderr; 2: bad usage.
"""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import typing
import urllib.error
import urllib.parse
import urllib.request

import dashboard

HERE = pathlib.Path(__file__).resolve().parent
GENERATE = dashboard.ROOT / "deploy" / "prometheus" / "generate.py"
POLL_SECONDS = 0.2
# Served on a path of its own and only when asked for (moe_serve --expert-metrics).
EXPERT_METRIC = "moe_expert_layer_tokens_total"


class Failure(Exception):
    """What went wrong, for a person."""


class Deadline:
    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def poll(self) -> bool:
        """Waits a moment; false when the time is up."""
        if time.monotonic() > self._end:
            return False
        time.sleep(POLL_SECONDS)
        return True


class Prometheus:
    """A Prometheus process on a free port, with its storage in `folder`."""

    def __init__(self, folder: pathlib.Path, source: list[str], deadline: Deadline) -> None:
        configuration = folder / "prometheus.yml"
        generated = subprocess.run(
            [sys.executable, str(GENERATE), "--scrape-interval", "1s", "--output", str(configuration), *source])
        if generated.returncode != 0:
            raise Failure(f"{GENERATE.name} {' '.join(source)} exited with {generated.returncode}")
        self._log = folder / "prometheus.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                ["prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}",
                 "--web.listen-address=127.0.0.1:0"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._address = self._wait_for_address(deadline)
        except Failure:
            self.close()
            raise

    def _wait_for_address(self, deadline: Deadline) -> str:
        while True:
            bound = re.search(r'"Listening on" address=(\S+)', self._log.read_text())
            if bound:
                return bound[1]
            if self._process.poll() is not None or not deadline.poll():
                raise Failure(f"prometheus did not start:\n{self._log.read_text()}")

    def get(self, path: str, **parameters: str) -> dict:
        """The "data" of an answer of the HTTP API; Failure with Prometheus's own words when it refuses."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise Failure(json.loads(error.read()).get("error", str(error))) from error

    def rules(self) -> list[dict]:
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def complaint_about(prometheus: Prometheus, expression: str) -> str | None:
    """Why the query is not answered as it should be yet; None when it is. Failure when it never will be."""
    data = prometheus.get("query", query=expression)
    samples = [data["result"]] if data["resultType"] == "scalar" else [series["value"] for series in data["result"]]
    if not samples:
        return "no series"
    return None if any(math.isfinite(float(value)) for _, value in samples) else "no finite value"


def complaints(prometheus: Prometheus, queries: list[dashboard.Query], deadline: Deadline) -> list[str]:
    """Asks until every query is answered or the time is up."""
    refused, pending = [], queries
    while True:
        still_pending, reasons = [], []
        for query in pending:
            try:
                reason = complaint_about(prometheus, query.expression)
            except Failure as error:
                refused.append(f"{query.where}: {error}: {query.expression}")
                continue
            if reason:
                still_pending.append(query)
                reasons.append(f"{query.where}: {reason}: {query.expression}")
        pending = still_pending
        if not pending or not deadline.poll():
            return refused + reasons


def dashboard_queries(expert_metrics: bool) -> list[dashboard.Query]:
    queries = dashboard.queries(dashboard.load())
    return [query for query in queries if expert_metrics or EXPERT_METRIC not in query.expression]


def check(prometheus: Prometheus, expert_metrics: bool, deadline: Deadline) -> None:
    """Failure naming every query of dashboard and rules that is not answered in time."""
    rules = prometheus.rules()
    queries = dashboard_queries(expert_metrics)
    queries += [dashboard.Query(f'rule "{rule["name"]}"', rule["name"]) for rule in rules]
    if not rules or len(queries) == len(rules):
        raise Failure("the dashboard or the rules are empty")
    found = complaints(prometheus, queries, deadline)
    found += [f'rule "{rule["name"]}": {rule["lastError"]}' for rule in prometheus.rules() if rule.get("lastError")]
    if found:
        raise Failure("\n".join(found))
    print(f"{len(queries)} queries answered")


def check_that_bad_queries_are_noticed(prometheus: Prometheus) -> None:
    bad = {"sum(moe_steps_total": "parse error", "moe_no_such_metric": "no series",
           "moe_steps_total * NaN": "no finite value"}
    found = complaints(prometheus, [dashboard.Query("bad", expression) for expression in bad], Deadline(0))
    for expression, reason in bad.items():
        if sum(reason in line and line.endswith(expression) for line in found) != 1:
            raise Failure(f"{expression!r} should be refused with {reason!r}; complaints: {found}")


class FakeCluster(typing.NamedTuple):
    process: subprocess.Popen
    ready_file: pathlib.Path

    @staticmethod
    def start(folder: pathlib.Path, ranks: int, deadline: Deadline) -> "FakeCluster":
        ready_file = folder / "ready.json"
        process = subprocess.Popen([sys.executable, "-B", str(HERE / "fake_exporter.py"), "--ranks", str(ranks),
                                    "--ready-file", str(ready_file)])
        while not ready_file.exists():
            if process.poll() is not None or not deadline.poll():
                process.terminate()
                raise Failure("fake_exporter.py did not start")
        return FakeCluster(process, ready_file)


def run_against_fake(ranks: int, timeout: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, deadline = pathlib.Path(name), Deadline(timeout)
        cluster = FakeCluster.start(folder, ranks, deadline)
        try:
            prometheus = Prometheus(folder, ["--ready-file", str(cluster.ready_file), "--expert-metrics"], deadline)
            try:
                check(prometheus, True, deadline)
                check_that_bad_queries_are_noticed(prometheus)
            finally:
                prometheus.close()
        finally:
            cluster.process.terminate()
            cluster.process.wait()


def run_against(source: list[str], expert_metrics: bool, timeout: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        deadline = Deadline(timeout)
        prometheus = Prometheus(pathlib.Path(name), source + (["--expert-metrics"] if expert_metrics else []), deadline)
        try:
            check(prometheus, expert_metrics, deadline)
        finally:
            prometheus.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--ready-file", metavar="FILE", help="of a running moe_serve")
    source.add_argument("--targets", metavar="HOST:PORT,…", help="metrics addresses, rank 0 first")
    parser.add_argument("--expert-metrics", action="store_true", help="the cluster serves /metrics/experts")
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS", help="(%(default)s)")
    options = parser.parse_args()
    os.environ["GOMAXPROCS"] = "1"  # Prometheus must not take the CPU from the cluster that it looks at
    try:
        if options.ready_file:
            run_against(["--ready-file", options.ready_file], options.expert_metrics, options.timeout)
        elif options.targets:
            run_against(["--targets", options.targets], options.expert_metrics, options.timeout)
        else:
            for ranks in (1, 3):
                run_against_fake(ranks, options.timeout)
    except (Failure, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
