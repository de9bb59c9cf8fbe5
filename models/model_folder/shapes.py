"""What tensors a network has, without making their numbers: a large one is looked at in no time and no memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.interface.errors import ModelFolderError

# No layer of a network is this wide but the one that was asked to be.
ODD_CLASSES = 977

Shapes = Mapping[str, tuple[int, ...]]

# What modules make their parameters by. Others, arange and linspace say, work out widths and rates, by their numbers.
_ALLOCATING = (torch.empty, torch.zeros, torch.ones)


class _WithoutNumbers(TorchFunctionMode):
    """Tensors that are only allocated have shapes and nothing else."""

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
    """The shape of each tensor of what `build` makes of so many classes, by name."""
    try:
        with _WithoutNumbers():
            module = build(classes)
    except (NotImplementedError, RuntimeError, ModelFolderError):
        # It looks at the numbers of a parameter while it is built: it must have them.
        module = build(classes)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
