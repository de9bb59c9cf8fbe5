"""What comes back for an image, and what is known of a model: plain records, readable without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.interface.errors import ImageError
from models.interface.telemetry import BatchReport, StageSeconds


@dataclass(frozen=True, slots=True)
class ScoredClass:
    """A class, and the probability in 0..1 that the image shows it."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image's answer: the asked-for classes, most probable first; features (D,) float32; when it began
    (`perf_counter`), where its time went, and the batch it was in."""

    classes: tuple[ScoredClass, ...]
    features: NDArray[np.float32]
    started_at: float
    seconds: StageSeconds
    batch: BatchReport


@dataclass(frozen=True, slots=True)
class Answer:
    """The answers to one request in the order of its images; an image's own fault stands in its place. `shape` is that
    of an image's features, `dimensions` how many numbers they are."""

    model: str
    fingerprint: str
    dimensions: int
    shape: tuple[int, ...]
    results: Sequence[Prediction | ImageError]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A served model as its users see it. `input_size` is the side in pixels of what the network gets. Without classes
    it has features alone; `feature_layer` is the inner layer that they are of, None for those before the head.
    `feature_shape` is that of an image's features, which are answered as a row of `feature_dimensions` numbers.
    `version` counts the loads of that name in this process, from 1."""

    name: str
    architecture: str
    parameters: int
    weight_bytes: int
    input_size: int
    classes: int
    feature_dimensions: int
    feature_shape: tuple[int, ...]
    feature_layer: str | None
    device: str
    dtype: str
    backend: str
    fingerprint: str
    training: bool
    load_seconds: float
    version: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load has led to: the model as it is served now, and whether it took the place of another version."""

    card: ModelCard
    replaced: bool
