"""Reads the Prometheus text format: samples of one or of all ranks, sums over labels, quantiles of histograms."""

import math
import re
import urllib.request

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

Sample = tuple[str, dict[str, str], float]  # name, labels, value


def parse(text: str) -> list[Sample]:
    """Raises ValueError naming the line that is none of the format."""
    samples = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        if not match:
            raise ValueError(f'"{line}" is no sample of the text format')
        samples.append((match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return samples


class Snapshot:
    """All metrics of all ranks at about one moment. `texts[r]` is what rank r's /metrics said."""

    def __init__(self, texts: list[str]):
        self.texts = texts
        self.ranks = [parse(text) for text in texts]

    @classmethod
    def scrape(cls, addresses: list[str], timeout: float = 10) -> "Snapshot":
        """One GET of /metrics from each HOST:PORT, rank 0 first."""
        texts = []
        for address in addresses:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=timeout) as response:
                texts.append(response.read().decode())
        return cls(texts)

    def total(self, name: str, rank: int | None = None, **labels: str) -> float:
        """Sum of all samples of that name with these labels, on one rank or on all; 0 when there is none."""
        samples = [sample for own in (self.ranks if rank is None else [self.ranks[rank]]) for sample in own]
        return sum(value for sample, own, value in samples
                   if sample == name and all(own.get(key) == text for key, text in labels.items()))

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Sums by the values of one label."""
        sums: dict[str, float] = {}
        for sample, labels, value in (sample for own in self.ranks for sample in own):
            if sample == name and label in labels:
                sums[labels[label]] = sums.get(labels[label], 0) + value
        return sums

    def buckets(self, histogram: str) -> dict[float, float]:
        """Upper bound -> cumulative count, over all ranks and labels."""
        return {float(bound): count for bound, count in self.by_label(f"{histogram}_bucket", "le").items()}


def quantile(q: float, buckets: dict[float, float]) -> float | None:
    """As Prometheus's histogram_quantile: linear within a bucket, the highest finite bound above that; nothing when
    there is no observation."""
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] == 0:
        return None
    rank = q * buckets[bounds[-1]]
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank and buckets[bound] > below:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        lower, below = (lower if math.isinf(bound) else bound), buckets[bound]
    return lower


def difference(after: dict[float, float], before: dict[float, float]) -> dict[float, float]:
    """Buckets of what was observed between two snapshots."""
    return {bound: count - before.get(bound, 0) for bound, count in after.items()}
