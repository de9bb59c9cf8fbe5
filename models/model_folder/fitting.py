"""Load weights into a network. Every tensor must fit; an error lists those that do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from models.interface.errors import ModelFolderError
from models.model_folder.shapes import ODD_CLASSES, shapes

Tensors = Mapping[str, torch.Tensor]

# Most mismatches that an error lists.
_MOST_LISTED = 10

# Names by which a prefix is found; more than one, because the first layers may not be in the file.
_NAMES_TRIED = 5

# Counter of training batches, unused in eval mode; BatchNorms did not have it before PyTorch 0.4.1.
COUNTER = "num_batches_tracked"


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
        if name not in unfit and not name.endswith(COUNTER)
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


def _described(tensor: torch.Tensor) -> str:
    """Return the shape, and the type unless it is a floating-point type."""
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"
