#!/usr/bin/python3
"""Sets what a load client counted beside what the servers counted; bench/cluster_load_test.sh drives it.

  compare_counts.py scrape --ready-file F --prometheus URL --output BEFORE    # when it sees all ranks, before the load
  compare_counts.py compare --ready-file F --before BEFORE --prometheus URL --client load.json --output FOLDER

`compare` writes FOLDER/result.json, FOLDER/metrics.txt and FOLDER/table.txt and prints the table. Counts must agree
exactly, between the client, Prometheus and a direct scrape of every rank. Exit code: 0 all agree and every request
completed, 1 not so, 2 bad usage. Needs nothing but the standard library."""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import exposition

RANK_LINE = "# ==== rank "  # a comment in the text format, between the ranks of a saved snapshot
QUANTILES = (0.5, 0.9, 0.99)
LATENCIES = {  # the client's name -> the server's histogram
    "ttft": "moe_request_time_to_first_token_seconds",
    "tpot": "moe_request_time_per_output_token_seconds",
    "itl": "moe_request_inter_token_seconds",
    "e2el": "moe_request_e2e_seconds",
}


@dataclasses.dataclass
class Check:
    """One count, from everyone who counted it. None: nobody there counts it."""
    name: str
    metric: str
    client: float | None
    prometheus: float | None
    direct: float

    @property
    def agrees(self) -> bool:
        return all(value is None or value == self.direct for value in (self.client, self.prometheus))


def ready(path: str) -> list[str]:
    return json.loads(pathlib.Path(path).read_text())["metrics"]


def save(snapshot: exposition.Snapshot, path: pathlib.Path) -> None:
    path.write_text("".join(f"{RANK_LINE}{rank}\n{text}" for rank, text in enumerate(snapshot.texts)))


def load(path: str) -> exposition.Snapshot:
    return exposition.Snapshot([part.partition("\n")[2] for part in pathlib.Path(path).read_text().split(RANK_LINE)[1:]])


def ask(url: str, query: str) -> float | None:
    """The value of a query with one result; None when it has none."""
    request = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(request, timeout=10) as response:
        result = json.load(response)["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def sees_all(url: str, ranks: int) -> bool:
    return ask(url, 'sum(up{job="moe"})') == ranks


def scrape(options: argparse.Namespace) -> int:
    """Waits until Prometheus scrapes every rank (it finds its targets some seconds after it is ready)."""
    addresses = ready(options.ready_file)
    deadline = time.monotonic() + options.timeout
    while not sees_all(options.prometheus, len(addresses)):
        if time.monotonic() > deadline:
            print(f"compare_counts.py: Prometheus does not see all {len(addresses)} ranks up after {options.timeout:g} s",
                  file=sys.stderr)
            return 1
        time.sleep(0.1)
    save(exposition.Snapshot.scrape(addresses), pathlib.Path(options.output))
    return 0


def client_counts(client: dict) -> dict[str, float]:
    """What the client sent and got, warm-up too, because the servers count that as well."""
    results, warmup = client["results"], client["results"]["warmup"]
    return {
        "prompt tokens": results["total_input_tokens"] + warmup["input_tokens"],
        "generated tokens": results["total_output_tokens"] + warmup["output_tokens"],
        "requests finished": results["completed"] + warmup["completed"],
        "requests rejected": results["failures"].get("RESOURCE_EXHAUSTED", {"count": 0})["count"],
    }


def count_checks(client: dict, url: str | None, before: exposition.Snapshot, after: exposition.Snapshot) -> list[Check]:
    """Without `url`, Prometheus is not asked."""
    counts = client_counts(client)
    finished = counts["requests finished"]
    # The name of a count, its metric, its labels, what the client says.
    rows = [("prompt tokens", "moe_prompt_tokens_total", {}, counts["prompt tokens"]),
            ("generated tokens", "moe_generated_tokens_total", {}, counts["generated tokens"]),
            ("requests finished", "moe_requests_total", {"outcome": "finished"}, finished)]
    rows += [(f"requests {outcome}", "moe_requests_total", {"outcome": outcome}, counts.get(f"requests {outcome}", 0))
             for outcome in ("cancelled", "rejected", "failed")]
    rows += [("first tokens timed", "moe_request_time_to_first_token_seconds_count", {}, finished),
             ("ends timed", "moe_request_e2e_seconds_count", {}, finished),
             ("expert tokens (router)", "moe_expert_tokens_total", {}, None),
             ("rows sent (router)", "moe_rank_rows_total", {}, None),
             ("rows computed (workers)", "moe_worker_rows_total", {}, None)]
    checks = []
    for name, metric, labels, expected in rows:
        start = before.total(metric, **labels)
        selector = ",".join(f'{key}="{value}"' for key, value in labels.items())
        seen = ask(url, f"sum({metric}{{{selector}}})") if url else None
        checks.append(Check(name, metric, expected, None if url is None else (seen or 0) - start,
                            after.total(metric, **labels) - start))
    return checks


def rows_agree(checks: list[Check]) -> bool:
    """Every (token, expert) pair that the router counted was sent to, and computed by, exactly one worker."""
    return len({check.direct for check in checks if check.client is None}) == 1


def settle(options: argparse.Namespace, client: dict,
           before: exposition.Snapshot) -> tuple[list[Check], exposition.Snapshot, bool]:
    """Looks until everybody agrees: ranks count a step soon after its tokens are sent, Prometheus sees that a scrape
    later. What does not agree in the end stays as it is."""
    addresses = ready(options.ready_file)
    deadline = time.monotonic() + options.timeout
    while True:
        after = exposition.Snapshot.scrape(addresses)
        checks = count_checks(client, options.prometheus, before, after)
        all_up = sees_all(options.prometheus, len(addresses))
        if (all_up and rows_agree(checks) and all(check.agrees for check in checks)) or time.monotonic() > deadline:
            return checks, after, all_up
        time.sleep(0.2)


def latency_rows(client: dict, url: str, before: exposition.Snapshot, after: exposition.Snapshot) -> list[dict]:
    """Milliseconds; the client's own beside those out of the server's histogram, directly and by Prometheus."""
    rows = []
    for name, histogram in LATENCIES.items():
        buckets = exposition.difference(after.buckets(histogram), before.buckets(histogram))
        for q in QUANTILES:
            direct = exposition.quantile(q, buckets)
            seen = ask(url, f"histogram_quantile({q}, sum by (le) ({histogram}_bucket))")
            rows.append({"latency": name, "quantile": q, "client_ms": client["results"][f"p{round(q * 100)}_{name}_ms"],
                         "direct_ms": None if direct is None else direct * 1000,
                         # Prometheus gives NaN for a histogram without observations.
                         "prometheus_ms": None if seen is None or seen != seen else seen * 1000})
    return rows


def rank_rows(before: exposition.Snapshot, after: exposition.Snapshot) -> list[dict]:
    rows = []
    for rank in range(len(after.ranks)):
        def growth(name: str) -> float:
            return after.total(name, rank) - before.total(name, rank)
        rows.append({"rank": rank, "rows": growth("moe_worker_rows_total"),
                     "busy_seconds": growth("moe_worker_busy_seconds_total"),
                     "cpu_seconds": growth("process_cpu_seconds_total"),
                     "resident_bytes": after.total("process_resident_memory_bytes", rank)})
    return rows


def expert_rows(before: exposition.Snapshot, after: exposition.Snapshot) -> list[dict]:
    start = before.by_label("moe_expert_tokens_total", "expert")
    end = after.by_label("moe_expert_tokens_total", "expert")
    total = sum(end.values()) - sum(start.values())
    return [{"expert": expert, "tokens": end[expert] - start.get(expert, 0),
             "share": (end[expert] - start.get(expert, 0)) / total if total else 0}
            for expert in sorted(end, key=lambda text: (len(text), text))]


def shown(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(result: dict) -> str:
    """The whole result for a person."""
    lines = [f"{'count':<26}{'client':>12}{'Prometheus':>12}{'scrape':>12}"]
    for check in result["checks"]:
        values = "".join(f"{shown(check[key]):>12}" for key in ("client", "prometheus", "direct"))
        lines.append(f"{check['name']:<26}{values}  {'' if check['agrees'] else 'DISAGREE'}".rstrip())
    lines += ["", "latency in ms; the servers' are out of histograms, warm-up included, from the arrival of a request",
              f"{'':<26}{'client':>12}{'Prometheus':>12}{'scrape':>12}"]
    for row in result["latencies"]:
        values = "".join(f"{shown(row[key], 2):>12}" for key in ("client_ms", "prometheus_ms", "direct_ms"))
        lines.append(f"{row['latency'].upper() + ' p' + str(round(row['quantile'] * 100)):<26}{values}")
    lines += ["", f"{'rank':<6}{'rows':>12}{'busy s':>12}{'CPU s':>12}{'resident MB':>14}"]
    for row in result["ranks"]:
        lines.append(f"{row['rank']:<6}{row['rows']:>12.0f}{row['busy_seconds']:>12.3f}{row['cpu_seconds']:>12.2f}"
                     f"{row['resident_bytes'] / 1e6:>14.1f}")
    lines += ["", f"{'expert':<8}{'tokens':>12}{'share':>9}"]
    lines += [f"{row['expert']:<8}{row['tokens']:>12.0f}{row['share']:>9.1%}" for row in result["experts"]]
    lines += [""] + [f"PROBLEM: {problem}" for problem in result["problems"]]
    lines.append("all counts agree, no request was lost, doubled or failed" if not result["problems"] else "FAILED")
    return "\n".join(lines) + "\n"


def problems(client: dict, checks: list[Check], all_up: bool) -> list[str]:
    """Sentences about everything that is not as it should be."""
    results = client["results"]
    found = [f"{results[key]} requests {text}" for key, text in
             (("lost", "lost"), ("doubled", "doubled"), ("failed", "failed (lost and doubled included)"),
              ("interrupted", "interrupted"), ("not_sent", "not sent")) if results[key]]
    if results["completed"] == 0:
        found.append("no request completed")
    found += [f"{check.name}: client {shown(check.client)}, Prometheus {shown(check.prometheus)}, "
              f"scrape {shown(check.direct)}" for check in checks if not check.agrees]
    if not rows_agree(checks):
        found.append("the router's expert tokens, the rows it sent and the rows that workers computed differ: " +
                     ", ".join(shown(check.direct) for check in checks if check.client is None))
    if not all_up:
        found.append("Prometheus does not see all ranks up")
    return found


def compare(options: argparse.Namespace) -> int:
    client = json.loads(pathlib.Path(options.client).read_text())
    before = load(options.before)
    checks, after, all_up = settle(options, client, before)
    folder = pathlib.Path(options.output)
    save(after, folder / "metrics.txt")
    result = {
        "checks": [dataclasses.asdict(check) | {"agrees": check.agrees} for check in checks],
        "latencies": latency_rows(client, options.prometheus, before, after),
        "ranks": rank_rows(before, after),
        "experts": expert_rows(before, after),
        "problems": problems(client, checks, all_up),
        "client": client["results"],
    }
    envelope = client | {"kind": "cluster_load", "results": result}
    (folder / "result.json").write_text(json.dumps(envelope, indent=2) + "\n")
    (folder / "table.txt").write_text(table(result))
    print(table(result), end="")
    return 1 if result["problems"] else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scraping = commands.add_parser("scrape", help="save every rank's metrics")
    comparing = commands.add_parser("compare", help="set the counts beside each other")
    for command in (scraping, comparing):
        command.add_argument("--ready-file", required=True, help="what moe_serve wrote")
        command.add_argument("--prometheus", required=True, help="its URL")
        command.add_argument("--timeout", type=float, default=30, help="seconds to wait for all ranks, or for the counts "
                             "to agree (%(default)g)")
        command.add_argument("--output", required=True, help="file (scrape) or folder (compare)")
    comparing.add_argument("--before", required=True, help="what scrape saved before the load")
    comparing.add_argument("--client", required=True, help="what moe_bench load --output wrote")
    options = parser.parse_args(arguments)
    try:
        return compare(options) if options.command == "compare" else scrape(options)
    except (OSError, ValueError, KeyError) as error:
        print(f"compare_counts.py: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
