"""Weights into a network: every tensor in its place, or a refusal that says which ones are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from models.interface.errors import ModelFolderError
from models.model_folder.shapes import ODD_CLASSES, shapes

Tensors = Mapping[str, torch.Tensor]

# Of what is wrong, so many are told.
_MOST_TOLD = 10

# Names to look for a prefix by; the first ones of a network may have been trained apart from it.
_NAMES_TRIED = 5

# Batches seen in training, which nothing in eval mode reads; BatchNorms did not have it before PyTorch 0.4.1.
COUNTER = "num_batches_tracked"


def load(module: nn.Module, tensors: Tensors, file: Path, what: str) -> None:
    """Put `tensors` of `file` into `module`, `what` as people know it, in the module's own floating-point types.

    Names may all have a prefix that training has put before them. Raises ModelFolderError unless names and shapes fit.
    """
    wanted = module.state_dict()
    named = without_prefix(tensors, wanted)
    unfit = {
        name: f"{name} is {_told(tensor)}, not {_told(wanted[name])}"
        for name, tensor in named.items()
        if name in wanted and not _fits(tensor, wanted[name])
    }
    # Through the modules' own ways of reading what older versions of them have saved.
    outcome = module.load_state_dict({name: t for name, t in named.items() if name not in unfit}, strict=False)
    missing = [
        f"{name} {_told(wanted[name])} is missing"
        for name in outcome.missing_keys
        if name not in unfit and not name.endswith(COUNTER)
    ]
    unexpected = [f"{name} {_told(named[name])} has no place" for name in outcome.unexpected_keys]
    faults = [*unfit.values(), *missing, *unexpected]
    if faults:
        counts = f"{len(missing)} tensors missing, {len(unexpected)} unexpected, {len(unfit)} of another shape"
        more = "; …" if len(faults) > _MOST_TOLD else ""
        raise ModelFolderError(file, f"does not fit {what}: {counts}: {'; '.join(faults[:_MOST_TOLD])}{more}")


def without_prefix(tensors: Tensors, wanted: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """`tensors` under the names of `wanted`, as far as there is one prefix, `module.` or `model.` say, that makes more
    of them fit than none does."""
    prefixes = {""} | {
        name.removesuffix(end) for end in list(wanted)[:_NAMES_TRIED] for name in tensors if name.endswith(f".{end}")
    }
    best = max(sorted(prefixes, key=len), key=lambda prefix: sum(prefix + name in tensors for name in wanted))
    return {name.removeprefix(best): tensor for name, tensor in tensors.items()}


def classes_of(tensors: Tensors, build: Callable[[int | None], nn.Module]) -> int | None:
    """Of how many classes the network was that `tensors` are from: as many as they have rows where that number goes.
    None where they do not say."""
    wanted = shapes(build, ODD_CLASSES)
    named = without_prefix(tensors, wanted)
    rows = {
        named[name].shape[0]
        for name, shape in wanted.items()
        if shape[:1] == (ODD_CLASSES,) and name in named and named[name].shape[1:] == shape[1:]
    }
    return rows.pop() if len(rows) == 1 else None


def _fits(tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    return tensor.shape == wanted.shape and tensor.is_floating_point() == wanted.is_floating_point()


def _told(tensor: torch.Tensor) -> str:
    """Its shape, with the type of its numbers where they are not floating-point ones."""
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"
