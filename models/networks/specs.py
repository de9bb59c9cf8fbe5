"""What a model is before it is loaded: a name, and how to build its classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from models.hardware.placement import Precision
from models.images.transforms import Transform

FeatureForm = Literal["pooled", "map"]


@dataclass(frozen=True, slots=True)
class FeatureLayer:
    """An inner layer to serve, all that comes after it cut off: `node` as torchvision's feature extraction names it,
    say `layer3`. Its output is served as the mean over positions (`pooled`) or as it is, flattened (`map`)."""

    node: str
    form: FeatureForm = "pooled"


@dataclass(frozen=True, slots=True)
class Classifier:
    """A built network with its weights, as its makers hand it out, and what belongs to it.

    Without labels it has no classes, and what it gives are features. With `features` it serves that layer and no
    classes, whatever its labels.
    """

    module: nn.Module
    transform: Transform
    labels: tuple[str, ...]
    features: FeatureLayer | None = None


@dataclass(frozen=True, slots=True)
class ServedAs:
    """How a model is to be served whatever was asked for: its precision, and for int8 the .xml of the network that has
    been quantized already."""

    precision: Precision
    quantized: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A name that can be served. `build` makes the classifier on the CPU, in float32; it may download weights
    and raises StartError. `backend`: the one that serves it, whatever was asked for; `served_as`: likewise its
    precision. `folder`: the model folder that it is, where it is one."""

    name: str
    architecture: str
    build: Callable[[], Classifier]
    backend: str | None = None
    served_as: ServedAs | None = None
    folder: Path | None = None
