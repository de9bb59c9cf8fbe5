"""Compare two models: agreement of their answers, and speed. Memory does not grow with the number of images.

The records are those of report.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from models.inference.image_job import ItemOutput
from models.interface.errors import JobError
from models.offline.running import Runner

_TOP = 5

# File to the indices of its class: several labels may have the same name.
Truth = Mapping[str, frozenset[int]]


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


def truth_of(files: Sequence[str], folder: Path, labels: Sequence[str]) -> Truth | None:
    """Return the classes of `files` if each lies in a folder of `folder` named as a label, else None."""
    indices: dict[str, set[int]] = {}
    for index, label in enumerate(labels):
        indices.setdefault(label, set()).add(index)
    names = {file: Path(file).relative_to(folder).parts[0] for file in files}
    if not all(name in indices for name in names.values()):
        return None
    return {file: frozenset(indices[name]) for file, name in names.items()}


class Tally:
    """Sums over the images compared."""

    def __init__(self, truth: Truth | None) -> None:
        self._truth = truth
        self._images = 0
        self._agreed = 0
        self._change_sum = 0.0
        self._change_most = 0.0
        self._cosine_sum = 0.0
        self._comparable = True
        self._right = np.zeros((2, 2), dtype=np.int64)

    def add(self, path: str, before: ItemOutput, after: ItemOutput) -> None:
        """Add both answers to one image, with the probabilities of all classes."""
        (old_top, old), (new_top, new) = _ranked(before), _ranked(after)
        change = float(np.abs(new - old).max())
        self._images += 1
        self._agreed += old_top[0] == new_top[0]
        self._change_sum += change
        self._change_most = max(self._change_most, change)
        self._comparable &= before.features.shape == after.features.shape
        if self._comparable:
            self._cosine_sum += _cosine(before.features, after.features)
        if self._truth is not None:
            classes = self._truth[path]
            self._right += [(top[0] in classes, not classes.isdisjoint(top)) for top in (old_top, new_top)]

    def agreement(self) -> Agreement:
        """Return the agreement over all images. Raises JobError if there is none."""
        if not self._images:
            raise JobError("none of the images could be read, and there is nothing to compare")
        return Agreement(
            self._images,
            self._agreed / self._images,
            self._change_sum / self._images,
            self._change_most,
            self._cosine_sum / self._images if self._comparable else None,
        )

    def accuracies(self) -> tuple[Accuracy | None, Accuracy | None]:
        """Return the accuracy of both models, or None if the true classes are unknown."""
        if self._truth is None:
            return None, None
        before, after = (Accuracy(*(float(count) / self._images for count in right)) for right in self._right)
        return before, after


def _ranked(answer: ItemOutput) -> tuple[list[int], NDArray[np.float64]]:
    """Return the top classes, and the probabilities in the order of the classes."""
    probabilities = np.zeros(len(answer.indices))
    probabilities[answer.indices] = answer.probabilities
    return answer.indices[:_TOP].tolist(), probabilities


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    length = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    # A ReLU can return zeros: two such vectors count as equal.
    return float(one @ other) / length if length else float(np.array_equal(one, other))


def race(runners: Sequence[Runner], pixels: torch.Tensor, rounds: int) -> list[Rate]:
    """Return the images per second of each runner, from pixels (N, 3, side, side) uint8 to answers.

    Each of the two or more rounds runs every runner, in alternating order, so that other load affects all of them.
    """
    seconds: list[list[float]] = [[] for _ in runners]
    for number in range(rounds):
        order = list(enumerate(runners))
        for place, runner in order if number % 2 else reversed(order):
            started_at = perf_counter()
            runner.answer(pixels, top_k=5)
            seconds[place].append(perf_counter() - started_at)
    return [_rate(times, len(pixels)) for times in seconds]


def _rate(seconds: Sequence[float], images: int) -> Rate:
    lower, median, upper = quantiles(sorted(images / taken for taken in seconds), n=4, method="inclusive")
    return Rate(median, lower, upper)
