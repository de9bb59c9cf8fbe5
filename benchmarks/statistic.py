"""Percentiles of latencies, rates of batches, and medians with their spread over rounds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and largest over the rounds."""

    median: float
    least: float
    largest: float

    def text(self) -> str:
        """Return the median, with least and largest in brackets."""
        return f"{figure(self.median)} ({figure(self.least)}–{figure(self.largest)})"  # noqa: RUF001 - a range


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value."""
    return Spread(median(values), min(values), max(values))


def latency_summary(latencies_ms: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99, mean and max in ms, with the names of wrk's script; all 0 without values."""
    if not latencies_ms:
        return dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "mean_ms", "max_ms"), 0.0)
    ordered = sorted(latencies_ms)
    return {
        "p50_ms": percentile(ordered, 50),
        "p90_ms": percentile(ordered, 90),
        "p99_ms": percentile(ordered, 99),
        "mean_ms": fmean(ordered),
        "max_ms": ordered[-1],
    }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the least value that `percent` of the sorted values do not exceed."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def steady_rate(moments: Sequence[float], start: float, end: float) -> float:
    """Return the events a second from the last before `start` to the last before `end`, or 0 without events.

    Answers come in batches, and an edge that cuts one would blur the rate.
    """
    ordered = sorted(moments)
    first, last = bisect_right(ordered, start) - 1, bisect_right(ordered, end) - 1
    if first < 0 or ordered[last] <= ordered[first]:
        return 0.0
    return (last - first) / (ordered[last] - ordered[first])


def figure(value: float) -> str:
    """Return three significant digits without an exponent."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2  # noqa: PLR2004 - three figures
    return f"{value:,.{digits}f}"
