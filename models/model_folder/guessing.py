"""Find the architecture of a checkpoint by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import timm
import torchvision

from models.interface.errors import UnsupportedArchitectureError
from models.model_folder.fitting import COUNTER, Tensors, without_prefix
from models.model_folder.shapes import ODD_CLASSES, Shapes, shapes
from models.networks import architectures
from models.networks.architectures import timm as timm_models
from models.networks.architectures import torchvision as torchvision_models

# Families are compared by one member each; the right one is among the most similar.
_FAMILIES_TRIED = 3

_DIGITS = re.compile(r"\d+")

# Below this similarity, an architecture is not suggested.
_LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Guess:
    """An architecture by name, and the share of its tensors, 0..1, that the checkpoint has in the same shapes, apart
    from the number of classes. 1: all of them and no others."""

    architecture: str
    share: float

    @property
    def exact(self) -> bool:
        return self.share == 1


def guess(tensors: Tensors) -> Guess | None:
    """Return the architecture that `tensors` fit, torchvision's first, or the most similar one; None if there is none.
    Takes seconds for torchvision's, and a minute for timm's."""
    best: Guess | None = None
    for families in (_torchvision_families(), _timm_families()):
        for name in _members(tensors, families):
            found = Guess(name, _share(tensors, _shapes(name)))
            if found.exact:
                return found
            if best is None or found.share > best.share:
                best = found
    return best if best is not None and best.share >= _LEAST_SHARE else None


def _members(tensors: Tensors, families: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the members of the families that are most similar to the checkpoint."""
    likeness = {family: _likeness(tensors, _shapes(members[0])) for family, members in families.items()}
    near = [family for family in families if likeness[family] >= _LEAST_SHARE]
    # Of equally similar ones the largest: deit has the networks of vision_transformer.
    for family in sorted(near, key=lambda family: (-likeness[family], -len(families[family])))[:_FAMILIES_TRIED]:
        yield from families[family]


def _shapes(name: str) -> Shapes:
    try:
        return shapes(architectures.find(name).build, ODD_CLASSES)
    except UnsupportedArchitectureError:
        return {}


def _likeness(tensors: Tensors, wanted: Shapes) -> float:
    """Return the Jaccard similarity of tensor names without numbers. Variants of a family differ in the number of
    blocks, families in the layers of a block."""
    ours = {_DIGITS.sub("#", name) for name in without_prefix(tensors, wanted)}
    theirs = {_DIGITS.sub("#", name) for name in wanted}
    return len(ours & theirs) / max(1, len(ours | theirs))


def _share(tensors: Tensors, wanted: Shapes) -> float:
    named = {name: tensor for name, tensor in without_prefix(tensors, wanted).items() if not name.endswith(COUNTER)}
    needed = {name: shape for name, shape in wanted.items() if not name.endswith(COUNTER)}
    fitting = sum(name in named and _alike(tuple(named[name].shape), shape) for name, shape in needed.items())
    return fitting / max(1, len(needed.keys() | named.keys()))


def _alike(held: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether shapes are equal, apart from the number of classes."""
    if wanted[:1] == (ODD_CLASSES,):
        return len(held) == len(wanted) and held[1:] == wanted[1:]
    return held == wanted


def _torchvision_families() -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name in torchvision_models.names():
        families.setdefault(torchvision.models.get_model_builder(name).__module__, []).append(name)
    return {family: _plainest_first(names) for family, names in families.items()}


def _timm_families() -> dict[str, list[str]]:
    families = {family: timm.list_models(module=family) for family in timm.list_modules()}
    return {
        family: [f"{timm_models.PREFIX}{name}" for name in _plainest_first(names)]
        for family, names in families.items()
        if names
    }


def _plainest_first(names: list[str]) -> list[str]:
    """Sort by length, because of several with the same tensors the one with the shortest name is most likely meant."""
    return sorted(names, key=lambda name: (len(name), name))
