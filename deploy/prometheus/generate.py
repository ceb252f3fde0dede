#!/usr/bin/env python3
"""Writes a Prometheus configuration that scrapes every rank of a running moe_serve.

Examples:
  generate.py --ready-file ready.json > prometheus.yml     # the addresses that moe_serve really bound
  generate.py --base-port 9400 --ranks 8 --expert-metrics  # rank r on port 9400 + r
  generate.py --targets 10.0.0.1:9400,10.0.0.2:9400        # one HOST:PORT a rank, rank 0 first

Needs nothing but the standard library.
"""

import argparse
import json
import pathlib
import re
import sys

DEFAULT_RULES = pathlib.Path(__file__).resolve().parent / "rules.yml"
_DURATION = re.compile(r"[1-9][0-9]*(ms|s|m)")
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


class UsageError(Exception):
    """A flag or a file whose content cannot be used; the message names it and the value."""


def reachable(address: str) -> str:
    """HOST:PORT to scrape for HOST:PORT as listened on: a wildcard is listened on, but cannot be connected to."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f'target "{address}" is not HOST:PORT with a port from 1 to 65535')
    return f"{_WILDCARDS.get(host, host)}:{port}"


def targets_of_ready_file(path: str) -> list[str]:
    try:
        ready = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"ready file {path}: {error}") from error
    targets = ready.get("metrics") if isinstance(ready, dict) else None
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise UsageError(f'ready file {path}: "metrics" is not a list of HOST:PORT')
    if not targets:
        raise UsageError(f'ready file {path}: "metrics" is empty; moe_serve runs with --metrics-port 0')
    return targets


def targets_of(options: argparse.Namespace) -> list[str]:
    """One HOST:PORT a rank, rank 0 first."""
    if options.ready_file:
        addresses = targets_of_ready_file(options.ready_file)
    elif options.targets:
        addresses = options.targets.split(",")
    else:
        if options.ranks < 1:
            raise UsageError(f"--ranks {options.ranks} is not at least 1")
        addresses = [f"{options.host}:{options.base_port + rank}" for rank in range(options.ranks)]
    return [reachable(address) for address in addresses]


def job(name: str, path: str, targets: list[str]) -> str:
    """One scrape job, one group a target, labelled with its rank. JSON strings are YAML strings."""
    groups = "".join(
        f"      - targets: [{json.dumps(target)}]\n"
        f"        labels: {{rank: {json.dumps(str(rank))}}}\n"
        for rank, target in enumerate(targets))
    return (f"  - job_name: {name}\n"
            f"    metrics_path: {path}\n"
            # The router's own figures about a worker carry that worker's rank, which must win over the router's.
            f"    honor_labels: true\n"
            f"    static_configs:\n{groups}")


def configuration(targets: list[str], rules: list[str], interval: str, expert_metrics: bool) -> str:
    text = (f"global:\n"
            f"  scrape_interval: {interval}\n"
            f"  scrape_timeout: {interval}\n"
            f"  evaluation_interval: {interval}\n")
    if rules:
        text += "rule_files:\n" + "".join(f"  - {json.dumps(rule)}\n" for rule in rules)
    text += "scrape_configs:\n" + job("moe", "/metrics", targets)
    if expert_metrics:
        # Layers times experts series: a job of its own, so that it can be dropped or scraped seldom. Router only.
        text += job("moe_experts", "/metrics/experts", targets[:1])
    return text


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--ready-file", metavar="FILE", help="what moe_serve --ready-file wrote")
    source.add_argument("--targets", metavar="HOST:PORT,…", help="metrics addresses, rank 0 first")
    parser.add_argument("--host", default="127.0.0.1", help="of all ranks, without the two above (%(default)s)")
    parser.add_argument("--base-port", type=int, default=9400, help="rank r serves metrics on this + r (%(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="number of ranks (%(default)s)")
    parser.add_argument("--expert-metrics", action="store_true", help="a second job for /metrics/experts of rank 0")
    parser.add_argument("--scrape-interval", default="5s", metavar="TIME", help="such as 500ms, 5s, 1m (%(default)s)")
    parser.add_argument("--rules", action="append", metavar="FILE",
                        help=f"recording rules, may be repeated ({DEFAULT_RULES.name} beside this program)")
    parser.add_argument("--no-rules", action="store_true", help="no recording rules")
    parser.add_argument("--output", metavar="FILE", help="where to write (standard output)")
    options = parser.parse_args(arguments)
    if not _DURATION.fullmatch(options.scrape_interval):
        raise UsageError(f'--scrape-interval "{options.scrape_interval}" is not a time such as 500ms, 5s or 1m')
    return options


def main(arguments: list[str]) -> int:
    try:
        options = parse(arguments)
        chosen = [] if options.no_rules else options.rules or [DEFAULT_RULES]
        rules = [str(pathlib.Path(rule).resolve()) for rule in chosen]
        text = configuration(targets_of(options), rules, options.scrape_interval, options.expert_metrics)
    except UsageError as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 2
    if options.output:
        pathlib.Path(options.output).write_text(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
