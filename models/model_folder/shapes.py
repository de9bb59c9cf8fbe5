"""Shapes of the tensors of a network, without allocating them: fast, and without memory, even for a large network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.interface.errors import ModelFolderError

# A number of classes that no other layer has as its width.
ODD_CLASSES = 977

Shapes = Mapping[str, tuple[int, ...]]

# Functions that allocate parameters. Others, say arange and linspace, compute values that builders read.
_ALLOCATING = (torch.empty, torch.zeros, torch.ones)


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
