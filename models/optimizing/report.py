"""What an optimization has brought and cost: the records of report.json. Needs the standard library alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """Images a second over the timed rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares, 0..1, of the images whose class is the first, or among the first five, of the answer."""

    top1: float
    top5: float


@dataclass(frozen=True, slots=True)
class Side:
    """A model as it is served on this machine. `weight_bytes` are those that it is served from."""

    fingerprint: str
    device: str
    dtype: str
    backend: str
    parameters: int
    weight_bytes: int
    rate: Rate
    accuracy: Accuracy | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two models' answers to the same images. `top1`: the share, 0..1, whose likeliest class is the same.
    `largest_probability_change`: of any class of any image; `mean_probability_change`: the mean over images of each
    one's largest. `feature_cosine` is the mean; None where features are of another length."""

    images: int
    top1: float
    mean_probability_change: float
    largest_probability_change: float
    feature_cosine: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """`used_images`: how many of the images the method itself has seen, to judge channels or to take ranges from.
    `left_out`: files that could not be read. `remarks` are sentences that belong to the figures."""

    source: str
    name: str
    method: str
    ratio: float | None
    used_images: int
    left_out: int
    agreement: Agreement
    before: Side
    after: Side
    batch_size: int
    rounds: int
    remarks: tuple[str, ...]
    versions: Mapping[str, str]
    made_at: str
    command: str
