"""What a model is before it is loaded: a name, and how to build its classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from models.transforms import Transform


@dataclass(frozen=True, slots=True)
class Classifier:
    """A built network with its weights, as its makers hand it out, and what belongs to it."""

    module: nn.Module
    transform: Transform
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A name that can be served. `build` makes the classifier on the CPU, in float32; it may download weights
    and raises StartError. `backend`: the one that serves it, whatever was asked for."""

    name: str
    architecture: str
    build: Callable[[], Classifier]
    backend: Literal["null"] | None = None
