"""The page of a run: rates, start-up, and the bars that `gradless features` is held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.markdown import over_rounds, table

# Different pictures; the others are further names of the same ones, which cost as much to read and decode.
DRAWN = 200

# Of the short run, whose time is start, end, and these: more than what is read without worker processes.
FEW = 256

COMMAND, BY_HAND, CEILING, SERVICE = (
    "gradless features",
    "hand-written loop",
    "decode and forward in one process",
    "gradless serve, 32 connections",
)

# Of the hand-written loop's rate, and of the ceiling's.
_LEAST_TIMES, _LEAST_SHARE = 3.0, 0.95

_PACKAGES = ("torch", "torchvision", "openvino", "pillow", "simplejpeg")


@dataclass(frozen=True, slots=True)
class Measured:
    """`start_s`: what a run takes that has nothing to do; None where it was not measured."""

    per_second: float
    start_s: float | None = None


def of(found: Mapping[str, Sequence[Measured]], described: Mapping[str, Any], images: int, rounds: int) -> str:
    """`found` by way, a figure a round; `described` as benchmarks.machine does."""
    rows = [
        [
            way,
            over_rounds(measured.per_second for measured in of_way),
            over_rounds(measured.start_s for measured in of_way if measured.start_s is not None),
        ]
        for way, of_way in found.items()
    ]
    versions = ", ".join(f"{name} {described['versions'][name]}" for name in _PACKAGES)
    lines = [
        "# A folder of files",
        "",
        f"Feature vectors of EfficientNet-Lite0 for {images} JPEGs of 500 x 375, {min(images, DRAWN)} pictures under",
        "as many names, in batches of 32. A rate is that of the images by which one run has more than another, of",
        f"{FEW}, so that start and end cancel out; start-up is what is left of the short run. The command and the loop",
        "read and write files; one process and the service have theirs in memory. Medians, with least and largest.",
        "",
        *table(["way", "images/s", "start-up s"], rows),
        "",
        *table(["bar", "wanted", "found"], _bars(found)),
        "",
        f"{described['processor']}, {described['cores']} cores, {described['memory_gib']} GiB; {described['system']}.",
        f"Python {described['python']}, {versions}.",
        f"{described['date']}, load average before {described['load_average_before']:.1f}:",
        f"`python -m benchmarks.folders --images {images} --rounds {rounds}`",
    ]
    return "\n".join(lines) + "\n"


def _bars(found: Mapping[str, Sequence[Measured]]) -> list[list[str]]:
    """Ratios of the same round."""

    def ratios(to: str) -> list[float]:
        pairs = zip(found[COMMAND], found[to], strict=True)
        return [ours.per_second / theirs.per_second for ours, theirs in pairs]

    return [
        [f"times the {BY_HAND}", f"≥ {_LEAST_TIMES:g}", over_rounds(ratios(BY_HAND))],
        [f"of {CEILING}", f"≥ {_LEAST_SHARE:g}", over_rounds(ratios(CEILING))],
        ["of the service", "", over_rounds(ratios(SERVICE))],
    ]
