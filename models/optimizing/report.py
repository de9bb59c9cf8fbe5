"""Records of report.json, the result of an optimization. Needs the standard library alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """Images per second over the timed rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares, 0..1, of the images whose true class is the top class, or one of the top five."""

    top1: float
    top5: float


@dataclass(frozen=True, slots=True)
class Side:
    """One model as it is served on this machine. `weight_bytes` is the size of the weights that it is served from."""

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
    """Agreement of two models' answers to the same images.

    `top1` is the share of images, 0..1, with the same top class. `largest_probability_change` is of any class of any
    image; `mean_probability_change` is the mean over images of each one's largest. `feature_cosine` is the mean over
    images; None if the features have different lengths.
    """

    images: int
    top1: float
    mean_probability_change: float
    largest_probability_change: float
    feature_cosine: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """`used_images` is the number of images that the method used to rank channels or find ranges.

    `left_out` is the number of unreadable files. `remarks` are sentences that explain the figures.
    """

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
