"""A model before it is loaded: its name, and how to build its classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from models.images.preprocessing import Transform
from models.interface.model_sources import FeatureForm, ServedAs


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network by name, with the transform and labels of its published weights.

    `build` returns it on the CPU, in float32, with seeded random weights, and with the given number of classes; None is
    the number of the published weights, which may be 0. `published` builds it with the published weights, which it may
    download; raises WeightsUnavailableError.
    """

    name: str
    transform: Transform
    labels: tuple[str, ...]
    build: Callable[[int | None], nn.Module]
    published: Callable[[], nn.Module]


@dataclass(frozen=True, slots=True)
class FeatureLayer:
    """An inner layer to serve instead of classes. `node` is its name in torchvision's feature extraction, say `layer3`.
    Its output is served as the mean over positions (`pooled`) or flattened (`map`)."""

    node: str
    form: FeatureForm = "pooled"


@dataclass(frozen=True, slots=True)
class Classifier:
    """A network with its published weights, its transform and its labels.

    Without labels it has no classes, and its output is features. With `features` it serves that layer and no classes,
    whatever its labels.
    """

    module: nn.Module
    transform: Transform
    labels: tuple[str, ...]
    features: FeatureLayer | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that can be served. `build` returns the classifier on the CPU, in float32; it may download weights, and
    raises StartError. `backend` and `served_as` override the settings. `folder`: the model folder, if it is one."""

    name: str
    architecture: str
    build: Callable[[], Classifier]
    backend: str | None = None
    served_as: ServedAs = ServedAs()
    folder: Path | None = None
