"""Sizes of layers that differ from the architecture's, to build a pruned network again without a pruning library.

The file is JSON. It maps the name of a layer, as in `named_modules`, to its sizes:
    {"layer1.0.conv1": {"in_channels": 64, "out_channels": 40, "groups": 1}, "layer1.0.bn1": {"num_features": 40}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from models.interface.errors import ModelFolderError
from models.model_folder.description import MIB, read_bounded

Sizes = Mapping[str, int]
SizesByLayer = Mapping[str, Sizes]

# Attributes with the sizes of each type of layer.
_KINDS: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (nn.Conv2d, ("in_channels", "out_channels", "groups")),
    (nn.Linear, ("in_features", "out_features")),
    (nn.modules.batchnorm._BatchNorm, ("num_features",)),  # noqa: SLF001 - there is no public name for all of them
)

_LARGEST = 1_000_000

# Enough for ten thousand layers.
_MOST_BYTES = MIB


def differing(module: nn.Module, fresh: nn.Module) -> dict[str, dict[str, int]]:
    """Return the sizes of the layers of `module` that differ from `fresh`, the same architecture before pruning. Raises
    ValueError for a layer of an unknown type, and for one that is only in one of them."""
    layers, made = dict(module.named_modules()), dict(fresh.named_modules())
    if layers.keys() != made.keys():
        raise ValueError(f"{min(layers.keys() ^ made.keys())} is in one network, and not in the other")
    found = {}
    for name, layer in layers.items():
        sizes, fresh_sizes = _sizes(layer), _sizes(made[name])
        if sizes == fresh_sizes and _shapes(layer) == _shapes(made[name]):
            continue
        if sizes is None:
            raise ValueError(f"a {type(layer).__name__} has other sizes now, which cannot be described")
        found[name] = sizes
    return found


def read(file: Path) -> SizesByLayer:
    """Read the sizes in `file`. Raises ModelFolderError unless they have the form of `differing`."""
    try:
        held = json.loads(read_bounded(file, _MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFolderError(file, f"cannot be read as JSON: {error}") from error
    if not isinstance(held, dict) or not all(isinstance(sizes, dict) for sizes in held.values()):
        raise ModelFolderError(file, 'must be sizes by the names of layers, as {"conv1": {"out_channels": 40}}')
    for layer, sizes in held.items():
        for name, size in sizes.items():
            if type(size) is not int or not 1 <= size <= _LARGEST:
                raise ModelFolderError(file, f"{name} must be a whole number from 1 to {_LARGEST}, not {size!r}", layer)
    return held


def digest(file: Path) -> str:
    """Return 16 hex digits over the content of `file`."""
    return hashlib.sha256(read_bounded(file, _MOST_BYTES)).hexdigest()[:16]


def resize(module: nn.Module, layers: SizesByLayer, file: Path) -> nn.Module:
    """Resize the layers of `module` in place, and return it; weights must be loaded afterwards. `file` is named in
    errors. Raises ModelFolderError for layers that do not exist, or not with these sizes."""
    for name, sizes in layers.items():
        try:
            layer = module.get_submodule(name)
        except AttributeError:
            raise ModelFolderError(file, "there is no such layer in the architecture", name) from None
        known = _names(layer)
        if known is None or set(sizes) != set(known):
            wanted = f"has {', '.join(known)}" if known else "has no sizes to set"
            raise ModelFolderError(file, f"{type(layer).__name__} {wanted}, not {', '.join(sizes) or 'none'}", name)
        _resize(layer, sizes, file, name)
    return module


def _resize(layer: nn.Module, sizes: Sizes, file: Path, name: str) -> None:
    for attribute, size in sizes.items():
        setattr(layer, attribute, size)
    match layer:
        case nn.Conv2d(in_channels=channels, out_channels=out, groups=groups):
            if channels % groups or out % groups:
                raise ModelFolderError(file, f"{groups} groups do not divide {channels} and {out} channels", name)
            _set(layer, weight=(out, channels // groups, *layer.kernel_size), bias=(out,))
        case nn.Linear(in_features=features, out_features=out):
            _set(layer, weight=(out, features), bias=(out,))
        case _:
            count = (sizes["num_features"],)
            _set(layer, weight=count, bias=count, running_mean=count, running_var=count)


def _set(layer: nn.Module, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        old = getattr(layer, name)
        if old is not None:
            new = torch.zeros(shape, dtype=old.dtype, device=old.device)
            setattr(layer, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)


def _names(layer: nn.Module) -> tuple[str, ...] | None:
    return next((names for kind, names in _KINDS if isinstance(layer, kind)), None)


def _sizes(layer: nn.Module) -> dict[str, int] | None:
    names = _names(layer)
    return None if names is None else {name: int(getattr(layer, name)) for name in names}


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the layer's own tensors, without those of its submodules."""
    own = (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
    return {name: tuple(tensor.shape) for name, tensor in own}
