"""Which model a request means: the same wherever models are served by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from models.interface.errors import ModelDownError, UnknownModelError

T = TypeVar("T")


def find(served: Mapping[str, T], down: Collection[str], name: str | None) -> T:
    """The model of that name, the first, which is the default, for None. Raises UnknownModelError, and ModelDownError
    for one of those that are `down`."""
    wanted = next(iter(served)) if name is None else name
    if wanted not in served:
        raise UnknownModelError(wanted, list(served))
    if wanted in down:
        raise ModelDownError(wanted)
    return served[wanted]
