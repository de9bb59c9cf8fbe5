"""Networks that can be built by name: every classifier of torchvision, and as `timm/NAME` every model of timm."""

from __future__ import annotations

import difflib

from models.interface.errors import UnknownCatalogNameError
from models.networks.architectures import timm, torchvision
from models.networks.architectures.architecture import Architecture

__all__ = ["Architecture", "exists", "find", "names", "similar"]


def names() -> list[str]:
    """Return every name that `find` accepts, torchvision's first, and timm's also with each tag of their weights."""
    return [*torchvision.names(), *timm.names()]


def exists(name: str) -> bool:
    """Return whether there is an architecture of that name."""
    return timm.exists(name) if name.startswith(timm.PREFIX) else name in torchvision.names()


def find(name: str) -> Architecture:
    """Return the architecture of that name. Raises UnknownCatalogNameError with similar names, and
    UnsupportedArchitectureError if its preprocessing is not supported."""
    if not exists(name):
        raise UnknownCatalogNameError(name, similar(name, names()))
    return timm.find(name) if name.startswith(timm.PREFIX) else torchvision.find(name)


def similar(name: str, known: list[str]) -> list[str]:
    """Return at most three of the `known` names that are most similar to `name`, the most similar first."""
    close = difflib.get_close_matches(name, known, n=3)
    # timm's model of that name, asked for without the prefix.
    owned = f"{timm.PREFIX}{name}"
    return list(dict.fromkeys([owned, *close]))[:3] if owned in known else close
