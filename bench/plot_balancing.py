#!/usr/bin/python3
"""Draws how experts are loaded and what a placement makes of it.

  bench/plot_balancing.py heat today.moetrace loads.json       # layer x expert, a map for each file
  bench/plot_balancing.py ranks before.json after.json         # rows of each worker, of moe_bench replay --output
  bench/plot_balancing.py timeline samples.csv                 # throughput and p99 over time, of bench/sample_server.py

heat takes routing traces, files for --loads ({"layers": [[tokens of expert 0, ...], ...]}) and results of moe_bench
replay. Pictures are written as --output says, else as heat.png, ranks.png or timeline.png. docs/balancing.md shows some.
Exit code: 0 drawn, 2 bad usage or a file that is none of these. Needs matplotlib (python3-matplotlib)."""

import argparse
import csv
import dataclasses
import pathlib
import sys

import picture
import read_trace
from picture import UsageError, pyplot, read_json

HOTTEST = 3  # times the mean: where the colours of a heat map end, so that maps can be compared


@dataclasses.dataclass
class Loads:
    """Tokens by layer and expert."""
    name: str
    layers: list[int]  # absolute index, or the number of the sparse layer where the file does not say
    tokens: list[list[float]]

    def shares(self) -> list[list[float]]:
        """Tokens of each expert over the mean of its layer; 0 in a layer without any."""
        return [[expert * len(layer) / sum(layer) if sum(layer) else 0.0 for expert in layer] for layer in self.tokens]

    def balancedness(self) -> float:
        """Mean over maximum, per layer, then averaged."""
        return sum(sum(layer) / len(layer) / max(layer) if max(layer) else 1.0
                   for layer in self.tokens) / len(self.tokens)


@dataclasses.dataclass
class Replayed:
    """A result of moe_bench replay."""
    model: str  # that the trace is of
    name: str
    rows: list[int]  # by worker
    layers: list[int]
    tokens: list[list[int]]  # by layer and expert

    def over_mean(self) -> list[float]:
        mean = sum(self.rows) / len(self.rows)
        return [rows / mean if mean else 0.0 for rows in self.rows]


def replayed(path: pathlib.Path, content: dict) -> Replayed:
    if (content.get("schema"), content.get("kind")) != (1, "replay") or len(content.get("results", ())) != 1:
        raise UsageError(f"{path} is not a result of moe_bench replay (schema 1, kind replay)")
    (result,) = content["results"]
    return Replayed(result["trace_model"], f"{result['placement']}, {result['slots']} slots", result["worker_rows"],
                    [layer["layer"] for layer in result["layers"]],
                    [layer["expert_tokens"] for layer in result["layers"]])


def read_loads(path: pathlib.Path) -> Loads:
    if path.suffix == ".moetrace":
        try:
            trace = read_trace.loads(path)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        except Exception as error:  # struct.error, ValueError, KeyError: whatever is wrong with it
            raise UsageError(f"{path} is not a routing trace: {error}") from None
        header = trace["header"]
        return Loads(f"{header['model']}, {header['routing']}", header["layers"], trace["layers"])
    content = read_json(path)
    if content.get("kind") == "replay":
        result = replayed(path, content)
        return Loads(result.model, result.layers, result.tokens)
    layers = content.get("layers")
    if not isinstance(layers, list) or not layers or not all(
            isinstance(layer, list) and layer and all(isinstance(tokens, (int, float)) for tokens in layer)
            for layer in layers):
        raise UsageError(f'{path} has no loads: {{"layers": [[tokens of expert 0, ...], ...]}}')
    return Loads(path.stem, list(range(len(layers))), layers)


def read_replay(path: pathlib.Path) -> Replayed:
    return replayed(path, read_json(path))


def read_samples(path: pathlib.Path) -> list[dict]:
    """Numbers by column; None where there is none."""
    try:
        with open(path, newline="") as file:
            lines = [{name: float(text) if text else None for name, text in line.items()}
                     for line in csv.DictReader(file)]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise UsageError(f"{path} is not a CSV file of numbers: {error}") from None
    if not lines:
        raise UsageError(f"{path} has no samples")
    for name in ("seconds", "tokens_per_s", "inter_token_p99", "migrations"):
        if name not in lines[0]:
            raise UsageError(f'{path} has no column "{name}" (bench/sample_server.py writes it)')
    return lines


def draw_heat(maps: list[Loads], path: pathlib.Path) -> None:
    figure, axes = pyplot().subplots(1, len(maps), figsize=(1.2 + 4.2 * len(maps), 3.4), squeeze=False,
                                     layout="constrained")
    for axis, loads in zip(axes[0], maps):
        shares = loads.shares()
        image = axis.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=HOTTEST, interpolation="nearest")
        axis.set_title(f"{loads.name}\nbalancedness of experts {loads.balancedness():.2f}", fontsize=10)
        axis.set_xlabel("expert")
        axis.set_yticks(range(len(loads.layers)), [str(layer) for layer in loads.layers])
        if len(shares) * len(shares[0]) <= 128:  # few enough to be read
            for layer, row in enumerate(shares):
                for expert, share in enumerate(row):
                    axis.text(expert, layer, f"{share:.1f}", ha="center", va="center", fontsize=8,
                              color="white" if share < 0.6 * HOTTEST else "black")
    axes[0][0].set_ylabel("layer")
    figure.colorbar(image, ax=axes[0].tolist(), label="rows / mean of the layer", extend="max")
    figure.savefig(path)


def draw_ranks(results: list[Replayed], path: pathlib.Path) -> None:
    models = list(dict.fromkeys(result.model for result in results))
    figure, axes = pyplot().subplots(1, len(models), figsize=(1.2 + 4.8 * len(models), 3.6), squeeze=False, sharey=True,
                                     layout="constrained")
    for model, axis in zip(models, axes[0]):
        own = [result for result in results if result.model == model]
        width = 0.8 / len(own)
        for number, result in enumerate(own):
            places = [worker + (number - (len(own) - 1) / 2) * width for worker in range(len(result.rows))]
            axis.bar(places, result.over_mean(), width,
                     label=f"{result.name}: slowest {max(result.over_mean()):.2f} x mean")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(model, fontsize=10)
        axis.set_xticks(range(max(len(result.rows) for result in own)))
        axis.set_xlabel("worker")
        axis.set_ylim(0, 1.3 * max(max(result.over_mean()) for result in results))  # room for the legend
        axis.legend(fontsize=9, loc="upper right")
    axes[0][0].set_ylabel("rows / mean of the workers")
    figure.savefig(path)


def draw_timeline(samples: list[dict], path: pathlib.Path) -> None:
    figure, (speed, wait) = pyplot().subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    times = [sample["seconds"] for sample in samples]
    speed.plot(times, [sample["tokens_per_s"] for sample in samples], color="C0")
    speed.set_ylabel("tokens/s")
    speed.set_ylim(bottom=0)
    wait.plot(times, [None if sample["inter_token_p99"] is None else 1e3 * sample["inter_token_p99"]
                      for sample in samples], color="C1")
    wait.set_ylabel("ms between tokens, p99")
    wait.set_ylim(bottom=0)
    wait.set_xlabel("seconds")
    begin, named = 0.0, False
    for sample in samples:
        if sample["migrations"]:
            for axis in (speed, wait):
                axis.axvspan(begin, sample["seconds"], color="C2", alpha=0.15, linewidth=0,
                             label=None if named or axis is wait else "a placement took effect")
            named = True
        begin = sample["seconds"]
    for axis in (speed, wait):
        axis.grid(alpha=0.3)
    if named:
        speed.legend(loc="lower right")
    figure.savefig(path)


def draw(kind: str, files: list[pathlib.Path], path: pathlib.Path) -> None:
    if kind == "heat":
        draw_heat([read_loads(file) for file in files], path)
    elif kind == "ranks":
        draw_ranks([read_replay(file) for file in files], path)
    elif len(files) > 1:
        raise UsageError("timeline takes one file")
    else:
        draw_timeline(read_samples(files[0]), path)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=("heat", "ranks", "timeline"))
    parser.add_argument("files", type=pathlib.Path, nargs="+", metavar="FILE")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="picture (png, svg or pdf by its name)")
    options = parser.parse_args(arguments)
    path = options.output or pathlib.Path(f"{options.picture}.png")
    return picture.draw("plot_balancing.py", options.files, path, lambda: draw(options.picture, options.files, path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
