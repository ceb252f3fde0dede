#!/usr/bin/python3
"""Shows what a running moe_serve does with one of the bundled models: sends it tasks whose answers are known, prints its
answers beside the right ones, and what the cluster says of itself. scripts/quickstart.sh starts a server and runs this.

  quickstart.py --server 127.0.0.1:50051
"""

import argparse
import concurrent.futures
import json
import pathlib
import statistics
import sys
import time

import grpc

from python_client import BYTE_VOCABULARY, NEWLINE, ROOT, Client

MAX_ANSWER_TOKENS = 96  # the longest bundled answer has 69
PARALLEL_BATCHES = 2


def print_table(headings: list[str], rows: list[list[str]], right: frozenset[int] | range = frozenset()) -> None:
    """Columns as wide as their widest cell; `right` has the indices of those that are aligned to the right."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    for row in [headings, ["-" * width for width in widths], *rows]:
        cells = [cell.rjust(width) if i in right else cell.ljust(width)
                 for i, (cell, width) in enumerate(zip(row, widths))]
        print("  " + "  ".join(cells).rstrip())


def shortened(text: str, width: int) -> str:
    text = text.replace("\n", "\\n")
    return text if len(text) <= width else text[:width - 1] + "…"


def pick_tasks(path: pathlib.Path, per_language: int) -> list[dict]:
    """The first few tasks of every language, languages taking turns, so that a batch holds a mixture."""
    by_language: dict[str, list[dict]] = {}
    for line in path.read_text().splitlines():
        task = json.loads(line)
        by_language.setdefault(task["language"], []).append(task)
    return [tasks[i] for i in range(per_language) for tasks in by_language.values() if i < len(tasks)]


def solve(client: Client, tasks: list[dict], batch_size: int) -> tuple[list, float]:
    """All tasks in batches, a few calls at a time; the continuations in the order of the tasks, and the seconds."""
    batches = [tasks[i:i + batch_size] for i in range(0, len(tasks), batch_size)]

    def run(batch: list[dict]) -> list:
        return client.generate([list(task["prompt"].encode()) for task in batch], max_new_tokens=MAX_ANSWER_TOKENS,
                               stop_token_ids=[NEWLINE])

    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(PARALLEL_BATCHES) as pool:
        results = [result for batch in pool.map(run, batches) for result in batch]
    return results, time.monotonic() - begin


def print_answers(tasks: list[dict], results: list) -> int:
    """One line a language, with its first wrong answer if there is one; returns how many answers are right."""
    rows, num_right = [], 0
    for language in dict.fromkeys(task["language"] for task in tasks):
        of_language = [(task, result.text().rstrip("\n"), task["answer"].rstrip("\n"))
                       for task, result in zip(tasks, results) if task["language"] == language]
        right = sum(given == wanted for _, given, wanted in of_language)
        task, given, wanted = next((entry for entry in of_language if entry[1] != entry[2]), of_language[0])
        question = task["prompt"].rstrip("\n").split("\n")[-1]
        rows.append([language, f"{right}/{len(of_language)}", shortened(question, 26), shortened(given, 36),
                     shortened(wanted, 36)])
        num_right += right
    print_table(["language", "right", "end of the prompt", "the model's answer", "the right answer"], rows, right=frozenset({1}))
    return num_right


def print_times(results: list, seconds: float) -> None:
    first = sorted(result.finish.usage.time_to_first_token_seconds * 1000 for result in results)
    prompt_tokens = sum(result.finish.usage.prompt_tokens for result in results)
    generated = sum(len(result.token_ids) for result in results)
    print(f"  {len(results)} sequences in {seconds:.2f} s: {prompt_tokens} prompt tokens, {generated} generated, "
          f"{generated / seconds:.0f} generated tokens/s")
    print(f"  time to first token, queueing included: median {statistics.median(first):.1f} ms, longest {first[-1]:.1f} ms")


def expert_ranges(experts: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    ranges: list[list[int]] = []
    for expert in sorted(experts):
        if ranges and expert == ranges[-1][1] + 1:
            ranges[-1][1] = expert
        else:
            ranges.append([expert, expert])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def hosted_summary(hosted: list) -> str:
    """Which experts a rank has; once when every layer has the same."""
    layers = {entry.layer: expert_ranges(list(entry.experts)) for entry in hosted if entry.experts}
    if not layers:
        return "none"
    if len(set(layers.values())) == 1:
        return f"{next(iter(layers.values()))} in each of {len(layers)} layers"
    return "; ".join(f"layer {layer}: {experts}" for layer, experts in sorted(layers.items()))


def print_cluster(cluster) -> None:
    rows = [[str(rank.rank), rank.role, f"{rank.host}:{rank.pid}", hosted_summary(rank.hosted),
             f"{rank.expert_parameters:,}", f"{rank.dense_parameters:,}", f"{rank.weight_bytes / 1e6:.2f}",
             str(rank.rows)] for rank in cluster.ranks]
    print_table(["rank", "role", "host:pid", "hosts experts", "expert params", "dense params", "weight MB", "rows"], rows,
                right=frozenset({0, 4, 5, 6, 7}))
    print(f"  transport {cluster.transport}, backend {cluster.backend}, weights {cluster.weight_type}")


def print_parameters(cluster) -> None:
    parameters = cluster.parameters
    share = parameters.active / max(1, parameters.total)
    print(f"  total {parameters.total:,}; active for one token {parameters.active:,} ({share:.1%}), "
          f"{parameters.active_without_embedding:,} without the embedding table")
    print(f"  distinct parameters used by a step, mean of {cluster.steps} steps: {cluster.mean_touched_parameters:,.0f}")


def print_utilisation(cluster) -> None:
    """Share of the routed tokens that each expert took, by layer."""
    if not cluster.layers:
        print("  a dense model: no experts")
        return
    num_experts = max(len(layer.expert_tokens) for layer in cluster.layers)
    rows = []
    for layer in cluster.layers:
        total = max(1, sum(layer.expert_tokens))
        rows.append([str(layer.layer), *(f"{tokens / total:.1%}" for tokens in layer.expert_tokens),
                     f"{layer.balancedness:.3f}", f"{layer.entropy:.3f}", str(layer.dead_experts)])
    print_table(["layer", *(f"e{expert}" for expert in range(num_experts)), "balanced", "entropy", "dead"], rows,
                right=range(num_experts + 4))
    print(f"  over the last {cluster.window_steps} steps; {1 / num_experts:.1%} each would be balanced")


def report(client: Client, tasks: list[dict]) -> int:
    model = client.get_model()
    if model.vocab_size != BYTE_VOCABULARY:
        print(f"quickstart: the tokens of {model.name} are not bytes; the tasks are for the bundled models", file=sys.stderr)
        return 1
    batch_size = min(8, model.limits.max_sequences_per_request or 8)
    experts = f"{model.num_experts} experts, {model.experts_per_token} for each token" if model.num_experts else "dense"
    print(f"\n{model.name} ({model.architecture}, {model.num_layers} layers, {experts}): "
          f"{len(tasks)} tasks in batches of {batch_size}\n")
    results, seconds = solve(client, tasks, batch_size)
    failed = [result for result in results if result.finish is None or result.finish.reason > 2]  # not STOP or LENGTH
    if failed:
        print(f"quickstart: {len(failed)} of {len(results)} sequences failed, the first with: "
              f"{failed[0].finish.message if failed[0].finish else 'no end'}", file=sys.stderr)
        return 1
    num_right = print_answers(tasks, results)
    print(f"  {num_right} of {len(tasks)} answers are right")
    cluster = client.get_cluster()
    for title, show in (("Speed", lambda: print_times(results, seconds)),
                        ("Who hosts what", lambda: print_cluster(cluster)),
                        ("Parameters", lambda: print_parameters(cluster)),
                        ("Expert utilisation", lambda: print_utilisation(cluster))):
        print(f"\n{title}")
        show()
    addresses = [f"http://{rank.metrics_address}/metrics" for rank in cluster.ranks if rank.metrics_address]
    print(f"\nMetrics, one address a rank, while the server runs{'' if addresses else ': off'}")
    for address in addresses:
        print(f"  {address}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="(%(default)s)")
    parser.add_argument("--tasks", type=pathlib.Path, default=ROOT / "models/tasks.jsonl", metavar="FILE")
    parser.add_argument("--per-language", type=int, default=4, metavar="N", help="tasks of each language (%(default)s)")
    arguments = parser.parse_args()
    if arguments.per_language < 1:
        parser.error(f"--per-language {arguments.per_language} is out of range (at least 1)")
    if not arguments.tasks.is_file():
        parser.error(f"--tasks {arguments.tasks} is not a file")
    try:
        with Client(arguments.server, timeout_s=120) as client:
            return report(client, pick_tasks(arguments.tasks, arguments.per_language))
    except grpc.RpcError as error:
        print(f"quickstart: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
