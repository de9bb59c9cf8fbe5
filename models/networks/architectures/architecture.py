"""An architecture: what is known of a network before it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models.images.transforms import Transform

# Random weights are seeded.
SEED = 0


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


def reason(error: BaseException) -> str:
    """Return the class of an error and the first line of its message, without a full stop."""
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"{error.filename} is not readable by this user"
    first_line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first_line.rstrip('.')}"
