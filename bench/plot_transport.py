#!/usr/bin/python3
"""Draws what `moe_bench transport` measured: time and bus bandwidth over the size of a message, every transport beside its
bare loops, a column for each number of workers.

  mpirun --oversubscribe --bind-to none -n 4 moe_bench transport --transports mpi,grpc --workers 1,3 --output transport.json
  bench/plot_transport.py transport.json                        # writes transport.png
  bench/plot_transport.py transport.json --output transport.svg

Lines are medians, shades reach from p10 to p99. docs/benchmarks.md defines the figures.
Exit code: 0 drawn, 2 bad usage or a file that is no such result. Needs matplotlib (python3-matplotlib)."""

import argparse
import dataclasses
import pathlib
import sys

import picture
from picture import UsageError


@dataclasses.dataclass
class Line:
    """One transport or bare loop with one number of workers; the lists by size, ascending."""
    name: str
    baseline: bool
    transport: str  # whose baseline it is, or itself
    sizes: list[int] = dataclasses.field(default_factory=list)
    p10: list[float] = dataclasses.field(default_factory=list)
    p50: list[float] = dataclasses.field(default_factory=list)
    p99: list[float] = dataclasses.field(default_factory=list)
    bandwidth: list[float] = dataclasses.field(default_factory=list)  # bytes a second

    def add(self, size: int, figures: dict) -> None:
        self.sizes.append(size)
        for name, values in (("p10", self.p10), ("p50", self.p50), ("p99", self.p99)):
            values.append(figures["seconds"][name])
        self.bandwidth.append(figures["busbw_bytes_per_s"])


def lines_of(results: list[dict]) -> dict[int, list[Line]]:
    """By number of workers."""
    found: dict[int, dict[tuple[str, str], Line]] = {}
    for result in sorted(results, key=lambda result: result["request_bytes"]):
        of_workers = found.setdefault(result["workers"], {})
        transport, size = result["transport"], result["request_bytes"]
        of_workers.setdefault((transport, transport), Line(transport, False, transport)).add(size, result)
        for baseline in result["baselines"]:
            name = baseline["name"]
            of_workers.setdefault((transport, name), Line(name, True, transport)).add(size, baseline)
    return {workers: list(lines.values()) for workers, lines in sorted(found.items())}


def read(path: pathlib.Path) -> dict:
    report = picture.read_json(path)
    if (report.get("schema"), report.get("kind")) != (1, "transport"):
        raise UsageError(f"{path} is not a result of moe_bench transport (schema 1, kind transport)")
    if not report.get("results"):
        raise UsageError(f"{path} has no results")
    return report


def shown_size(size: float) -> str:
    for unit, bytes_of_unit in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= bytes_of_unit:
            return f"{size / bytes_of_unit:g} {unit}"
    return f"{size:g} B"


def draw(report: dict, path: pathlib.Path) -> None:
    plots = picture.pyplot()
    from matplotlib import ticker

    columns = lines_of(report["results"])
    figure, axes = plots.subplots(2, len(columns), figsize=(1 + 5.5 * len(columns), 8), squeeze=False, sharex=True,
                                  sharey="row", layout="constrained")
    names = sorted({line.transport for lines in columns.values() for line in lines})
    colours = {name: f"C{number}" for number, name in enumerate(names)}
    for column, (workers, lines) in enumerate(columns.items()):
        time, bandwidth = axes[0][column], axes[1][column]
        time.set_title(f"{workers} worker(s)")
        for line in lines:
            style = {"color": colours[line.transport], "linestyle": "--" if line.baseline else "-", "marker": ".",
                     "label": line.name}
            time.plot(line.sizes, [1e6 * seconds for seconds in line.p50], **style)
            if not line.baseline:
                time.fill_between(line.sizes, [1e6 * seconds for seconds in line.p10],
                                  [1e6 * seconds for seconds in line.p99], color=colours[line.transport], alpha=0.15)
            bandwidth.plot(line.sizes, [speed / 1e9 for speed in line.bandwidth], **style)
        for axis in (time, bandwidth):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda size, _: shown_size(size)))
            axis.tick_params(axis="x", labelrotation=45)
            axis.grid(alpha=0.3)
        bandwidth.set_xlabel("message to each worker, and back")
    axes[0][0].set_ylabel("us for a fan-out and gather (p50; shade p10 to p99)")
    axes[1][0].set_ylabel("GB/s bus bandwidth")
    axes[0][0].legend()
    host = report["host"]
    figure.suptitle(f"{host['cpu']}, {host['cores']} cores; {report['when']}, {report['build']['commit']}")
    figure.savefig(path)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=pathlib.Path, help="what moe_bench transport wrote with --output or --json")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE",
                        help="picture (png, svg or pdf by its name); without: beside the result, .png")
    options = parser.parse_args(arguments)
    path = options.output or options.result.with_suffix(".png")
    return picture.draw("plot_transport.py", [options.result], path, lambda: draw(read(options.result), path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
