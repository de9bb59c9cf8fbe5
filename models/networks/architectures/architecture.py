"""What is known of a network before it is built, whoever has written it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models.images.transforms import Transform

# Random weights are the same each time.
SEED = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network by name, and what belongs to the weights that its makers publish for it.

    `build` makes it on the CPU, in float32, with seeded random weights, the same each time: of that many classes, or
    for None of as many as the published weights have, which may be none. `published` builds it with those, which it
    may download; raises WeightsUnavailableError.
    """

    name: str
    transform: Transform
    labels: tuple[str, ...]
    build: Callable[[int | None], nn.Module]
    published: Callable[[], nn.Module]


def reason(error: BaseException) -> str:
    """The kind of an error and the first line of its message, without a full stop."""
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"{error.filename} is not readable by this user"
    first_line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first_line.rstrip('.')}"
