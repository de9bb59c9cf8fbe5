"""Networks that can be built by name: every classifier of torchvision, and as `timm/NAME` every model of timm."""

from __future__ import annotations

import difflib

from models.interface.errors import UnknownCatalogNameError
from models.networks.architectures import timm, torchvision
from models.networks.architectures.architecture import Architecture

__all__ = ["Architecture", "exists", "find", "names", "similar"]


def names() -> list[str]:
    """Every name that `find` takes, torchvision's first; timm's also with each of their weights' tags."""
    return [*torchvision.names(), *timm.names()]


def exists(name: str) -> bool:
    """Whether there is an architecture of that name."""
    return timm.exists(name) if name.startswith(timm.PREFIX) else name in torchvision.names()


def find(name: str) -> Architecture:
    """The architecture of that name. Raises UnknownCatalogNameError, with what is spelled alike, and
    UnsupportedArchitectureError for one whose images cannot be made here."""
    if not exists(name):
        raise UnknownCatalogNameError(name, similar(name, names()))
    return timm.find(name) if name.startswith(timm.PREFIX) else torchvision.find(name)


def similar(name: str, known: list[str]) -> list[str]:
    """What of `known` is spelled most like `name`: three at most, the most alike first."""
    close = difflib.get_close_matches(name, known, n=3)
    # Also what somebody has asked for without saying whose it is.
    owned = f"{timm.PREFIX}{name}"
    return list(dict.fromkeys([owned, *close]))[:3] if owned in known else close
