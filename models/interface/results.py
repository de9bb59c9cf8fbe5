"""Results of inference and facts about models: records that need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.interface.errors import ImageError
from models.interface.telemetry import BatchReport, StageSeconds


@dataclass(frozen=True, slots=True)
class ScoredClass:
    """A class and its probability, 0..1."""

    index: int
    label: str
    probability: float


class Prediction(NamedTuple):
    """One image's result: the top classes, most probable first; features (D,) float32; the time its request was
    admitted (`perf_counter`), the seconds of each stage, and its batch. `all_probabilities` are those of all classes
    by index, (C,) float32, if the request asked for them."""

    classes: tuple[ScoredClass, ...]
    features: NDArray[np.float32]
    started_at: float
    seconds: StageSeconds
    batch: BatchReport
    all_probabilities: NDArray[np.float32] | None = None


class Answer(NamedTuple):
    """The results of one request in the order of its images; an image at fault has its ImageError. `shape` is the
    shape of one image's features, `dimensions` their number. `version` is that of the model's card."""

    model: str
    fingerprint: str
    dimensions: int
    shape: tuple[int, ...]
    results: Sequence[Prediction | ImageError]
    version: int


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Facts about a served model.

    `input_size` is the side of the network's input in pixels; `mean` and `std` are those of its normalization, for each
    RGB channel on the scale 0..1. `classes` is 0 for a model that has features alone.
    `feature_layer` is the inner layer that gives the features; None is the input of the head. `feature_shape` is the
    shape of one image's features, which are returned as a row of `feature_dimensions` numbers. `version` counts the
    loads of this name in this process, from 1. `device` has the names of all its devices, joined by commas.
    """

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
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def devices(self) -> list[str]:
        return self.device.split(",")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of a load: the card of the served model, and whether it replaced another version."""

    card: ModelCard
    replaced: bool
