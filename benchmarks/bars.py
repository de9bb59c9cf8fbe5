"""The bars of gradless with the measured values, missed ones included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from benchmarks import comparisons
from benchmarks.comparisons import Kept
from benchmarks.markdown import over_rounds, table
from benchmarks.servers import DEFAULT, MODELS

_MODEL = MODELS[0]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar. `limit` is a minimum or maximum, `shown` its text; `measured` has a value a round."""

    what: str
    side: Literal["≥", "≤"]
    limit: float
    shown: str
    measured: Sequence[float]

    def verdict(self) -> str:
        """Return "held", "**missed**" or "not measured", by the median."""
        if not self.measured:
            return "not measured"
        middle = median(self.measured)
        return "held" if (middle >= self.limit if self.side == "≥" else middle <= self.limit) else "**missed**"


def section(kept: Kept) -> list[str]:
    """Return the section of the page, empty if no bar was measured."""
    bars = _all(kept)
    if not any(bar.measured for bar in bars):
        return []
    rows = [[bar.what, f"{bar.side} {bar.shown}", over_rounds(bar.measured), bar.verdict()] for bar in bars]
    peer = comparisons.best_peer(kept, _MODEL)
    lines = [
        "",
        "## Bars",
        "",
        f"For {_MODEL}, the default model, and unless stated otherwise gradless's default configuration,",
        f"{DEFAULT.removeprefix('gradless ')}. Ratios are of figures of the same turn or round; the median decides.",
    ]
    if peer is not None:
        lines.append(f"The best of the other servers at {comparisons.BUSY} connections is {peer}.")
    return [*lines, "", *table(["what", "bar", "measured", ""], rows)]


def _all(kept: Kept) -> list[Bar]:
    return [*_against_others(kept), *_against_the_machine(kept), *_under_overload(kept), *_around(kept)]


def _against_others(kept: Kept) -> list[Bar]:
    peer = comparisons.best_peer(kept, _MODEL)

    def times(server: str) -> list[float]:
        return comparisons.against_peer(kept, server, peer, _MODEL) if peer else []

    return [
        Bar("images/s at 32 connections over those of the best other server", "≥", 3.5, "3.5", times(DEFAULT)),
        Bar("the same in bf16", "≥", 6.0, "6.0", times("gradless openvino bf16")),
        Bar("the same, eager fp32 in both", "≥", 1.2, "1.2", times("gradless eager fp32")),
    ]


def _against_the_machine(kept: Kept) -> list[Bar]:
    of_ceiling = comparisons.of_ceiling(kept, DEFAULT, _MODEL)
    of_decoding = comparisons.of_decoding(kept)
    of_one_image = comparisons.of_one_image(kept, DEFAULT, _MODEL)
    many = comparisons.many_connections(kept, DEFAULT, _MODEL)
    return [
        Bar("images/s at 32 connections over decode and forward in process", "≥", 0.92, "0.92", of_ceiling),
        Bar("the same with the null model, over decoding in process", "≥", 0.80, "0.80", of_decoding),
        Bar("p50 of one connection over one image in process", "≤", 1.20, "1.20", of_one_image),
        Bar("p99 over p50 at 32 connections", "≤", 1.6, "1.6", comparisons.tail(kept, DEFAULT, _MODEL)),
        Bar("images/s at 128 connections over those at 32", "≥", 0.97, "0.97", many),
    ]


def _under_overload(kept: Kept) -> list[Bar]:
    goodput = comparisons.goodput(kept, DEFAULT, _MODEL)
    refusals = comparisons.refusals_ms(kept, DEFAULT, _MODEL, "p99")
    return [
        Bar("images/s under a load of 120 % of capacity, over capacity", "≥", 0.95, "0.95", goodput),
        Bar("p99 of the latency of refusals then", "≤", 10.0, "10 ms", refusals),
    ]


def _around(kept: Kept) -> list[Bar]:
    first, later = (comparisons.start_seconds(kept, f"{start}_s") for start in ("first", "later"))
    return [
        Bar(
            "CPU time to decode and resize a JPEG of 12 MP, over Pillow's",
            "≤",
            1 / 6,
            "1/6",
            comparisons.preprocessing(kept, "12 MP"),
        ),
        Bar("first start to ready, with an empty cache", "≤", 15.0, "15 s", first),
        Bar("later starts to ready", "≤", 6.0, "6 s", later),
    ]
