"""The page of a run: rates, start-up, and the bars of `gradless features`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import machine
from benchmarks.markdown import over_rounds, table
from benchmarks.pictures import DRAWN

# Files of the short run, whose time is mostly start and end; more than are read without worker processes.
FEW = 256

COMMAND, BY_HAND, CEILING, SERVICE = (
    "gradless features",
    "hand-written loop",
    "decode and forward in one process",
    "gradless serve, 32 connections",
)

# Bars against the rates of the hand-written loop and of the ceiling.
_LEAST_TIMES, _LEAST_SHARE = 3.0, 0.95

_PACKAGES = ("torch", "torchvision", "openvino", "pillow", "simplejpeg")


@dataclass(frozen=True, slots=True)
class Measured:
    """A way's rate and `start_s`, the time of a run without work, or None if it was not measured."""

    per_second: float
    start_s: float | None = None


def of(found: Mapping[str, Sequence[Measured]], described: Mapping[str, Any], images: int, rounds: int) -> str:
    """Return the page. `found` has a figure a round for each way; `described` is from benchmarks.machine."""
    rows = [
        [
            way,
            over_rounds(measured.per_second for measured in of_way),
            over_rounds(measured.start_s for measured in of_way if measured.start_s is not None),
        ]
        for way, of_way in found.items()
    ]
    lines = [
        "# A folder of files",
        "",
        f"Feature vectors of EfficientNet-Lite0 for {images} JPEGs of 500 x 375, {min(images, DRAWN)} pictures under",
        "as many names, in batches of 32. A rate is measured by the difference to a run of",
        f"{FEW} images, so that start and end cancel out; start-up is the rest of that run. The command and the loop",
        "read and write files; one process and the service have theirs in memory. Medians, with least and largest.",
        "",
        *table(["way", "images/s", "start-up s"], rows),
        "",
        *table(["bar", "required", "measured"], _bars(found)),
        "",
        *machine.lines(described, _PACKAGES, f"python -m benchmarks.folders --images {images} --rounds {rounds}"),
    ]
    return "\n".join(lines) + "\n"


def _bars(found: Mapping[str, Sequence[Measured]]) -> list[list[str]]:
    """Return ratios of the same round."""

    def ratios(to: str) -> list[float]:
        pairs = zip(found[COMMAND], found[to], strict=True)
        return [ours.per_second / theirs.per_second for ours, theirs in pairs]

    return [
        [f"times the {BY_HAND}", f"≥ {_LEAST_TIMES:g}", over_rounds(ratios(BY_HAND))],
        [f"of {CEILING}", f"≥ {_LEAST_SHARE:g}", over_rounds(ratios(CEILING))],
        ["of the service", "", over_rounds(ratios(SERVICE))],
    ]
