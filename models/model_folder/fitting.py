"""Fit weights to a network: load them, if every tensor fits, or find the architecture that they fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from models.interface.errors import ModelFolderError, UnsupportedArchitectureError
from models.networks import architectures

Tensors = Mapping[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]

# Most mismatches that an error lists.
_MOST_LISTED = 10
# Names by which a prefix is found; more than one, because the first layers may not be in the file.
_NAMES_TRIED = 5
# Counter of training batches, unused in eval mode; BatchNorms did not have it before PyTorch 0.4.1.
_COUNTER = "num_batches_tracked"
# A number of classes that no other layer has as its width.
_ODD_CLASSES = 977
# Functions that allocate parameters. Others, say arange and linspace, compute values that builders read.
_ALLOCATING = (torch.empty, torch.zeros, torch.ones)
# Families are compared by one member each; the right one is among the most similar.
_FAMILIES_TRIED = 3
# Below this similarity, an architecture is not suggested.
_LEAST_SHARE = 0.5
_DIGITS = re.compile(r"\d+")


def load(module: nn.Module, tensors: Tensors, file: Path, what: str) -> None:
    """Load `tensors` of `file` into `module`, in the module's own floating-point types. `what` names it in errors.

    All names may have a prefix from training. Raises ModelFolderError unless names and shapes fit.
    """
    wanted = module.state_dict()
    named = without_prefix(tensors, wanted)
    unfit = {
        name: f"{name} is {_described(tensor)}, not {_described(wanted[name])}"
        for name, tensor in named.items()
        if name in wanted and not _fits(tensor, wanted[name])
    }
    # load_state_dict, because modules convert the state of their older versions there.
    outcome = module.load_state_dict({name: t for name, t in named.items() if name not in unfit}, strict=False)
    missing = [
        f"{name} {_described(wanted[name])} is missing"
        for name in outcome.missing_keys
        if name not in unfit and not name.endswith(_COUNTER)
    ]
    unexpected = [f"{name} {_described(named[name])} has no place" for name in outcome.unexpected_keys]
    faults = [*unfit.values(), *missing, *unexpected]
    if faults:
        counts = f"{len(missing)} tensors missing, {len(unexpected)} unexpected, {len(unfit)} of another shape"
        more = "; …" if len(faults) > _MOST_LISTED else ""
        raise ModelFolderError(file, f"does not fit {what}: {counts}: {'; '.join(faults[:_MOST_LISTED])}{more}")


def without_prefix(tensors: Tensors, wanted: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Return `tensors` without the common prefix, say `module.` or `model.`, with which most names of `wanted`
    match."""
    prefixes = {""} | {
        name.removesuffix(end) for end in list(wanted)[:_NAMES_TRIED] for name in tensors if name.endswith(f".{end}")
    }
    best = max(sorted(prefixes, key=len), key=lambda prefix: sum(prefix + name in tensors for name in wanted))
    return {name.removeprefix(best): tensor for name, tensor in tensors.items()}


def classes_of(tensors: Tensors, build: Callable[[int | None], nn.Module]) -> int | None:
    """Return the number of classes of the network that `tensors` are from, the rows of its last layer. None if that is
    ambiguous."""
    wanted = shapes(build, _ODD_CLASSES)
    named = without_prefix(tensors, wanted)
    rows = {
        named[name].shape[0]
        for name, shape in wanted.items()
        if shape[:1] == (_ODD_CLASSES,) and name in named and named[name].shape[1:] == shape[1:]
    }
    return rows.pop() if len(rows) == 1 else None


def _fits(tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    return tensor.shape == wanted.shape and tensor.is_floating_point() == wanted.is_floating_point()


def _described(tensor: torch.Tensor) -> str:
    """Return the shape, and the type unless it is a floating-point type."""
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


class _WithoutNumbers(TorchFunctionMode):
    """Puts tensors that are only allocated on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        options = dict(kwargs or {})
        if func in _ALLOCATING and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


def shapes(build: Callable[[int | None], nn.Module], classes: int | None) -> Shapes:
    """Return the shape of each tensor, by name, of the network with so many classes."""
    try:
        with _WithoutNumbers():
            module = build(classes)
    except (NotImplementedError, RuntimeError, ModelFolderError):
        # The builder reads values of a parameter, so allocate them.
        module = build(classes)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


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
        return shapes(architectures.find(name).build, _ODD_CLASSES)
    except UnsupportedArchitectureError:
        return {}


def _likeness(tensors: Tensors, wanted: Shapes) -> float:
    """Return the Jaccard similarity of tensor names without numbers. Variants of a family differ in the number of
    blocks, families in the layers of a block."""
    ours = {_DIGITS.sub("#", name) for name in without_prefix(tensors, wanted)}
    theirs = {_DIGITS.sub("#", name) for name in wanted}
    return len(ours & theirs) / max(1, len(ours | theirs))


def _share(tensors: Tensors, wanted: Shapes) -> float:
    named = {name: tensor for name, tensor in without_prefix(tensors, wanted).items() if not name.endswith(_COUNTER)}
    needed = {name: shape for name, shape in wanted.items() if not name.endswith(_COUNTER)}
    fitting = sum(name in named and _alike(tuple(named[name].shape), shape) for name, shape in needed.items())
    return fitting / max(1, len(needed.keys() | named.keys()))


def _alike(held: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether shapes are equal, apart from the number of classes."""
    if wanted[:1] == (_ODD_CLASSES,):
        return len(held) == len(wanted) and held[1:] == wanted[1:]
    return held == wanted


def _torchvision_families() -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name in architectures.torchvision_names():
        families.setdefault(torchvision.models.get_model_builder(name).__module__, []).append(name)
    return {family: _plainest_first(names) for family, names in families.items()}


def _timm_families() -> dict[str, list[str]]:
    families = {family: timm.list_models(module=family) for family in timm.list_modules()}
    return {
        family: [f"{architectures.TIMM_PREFIX}{name}" for name in _plainest_first(names)]
        for family, names in families.items()
        if names
    }


def _plainest_first(names: list[str]) -> list[str]:
    """Sort by length, because of several with the same tensors the one with the shortest name is most likely meant."""
    return sorted(names, key=lambda name: (len(name), name))
