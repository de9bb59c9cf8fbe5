"""Remove whole channels of a network, least important first, with torch-pruning.

The result is a smaller dense network, faster on any device, not a sparse one. Layers that are joined, as by the sum at
the end of a residual block, lose the same channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch_pruning
from torch import nn
from torch.nn.functional import cross_entropy

from models.interface.errors import UnsupportedArchitectureError
from models.networks.architectures import reason

# Kernels process this many channels at a time: 41 take as long as 48.
_MULTIPLE = 8

# At most this share of one layer is removed: a layer that is nearly gone blocks the network.
_MOST_OF_A_LAYER = 0.8


def prune(name: str, module: nn.Module, batches: Sequence[torch.Tensor], *, ratio: float, classes: int) -> None:
    """Remove the share `ratio`, 0..1, of the channels of `module`, in place and in eval mode.

    `batches`, (N, 3, H, W) normalized, of two or more images, rank the channels. The importance of a channel is the
    first-order estimate of how much the loss rises without it. The target of the loss is the network's own top class,
    so no labels are needed. The same images recompute the BatchNorm statistics, because the old ones do not fit the
    pruned network. Layers that output the classes are not pruned.

    Raises UnsupportedArchitectureError if torch-pruning cannot trace the network.
    """
    try:
        with _quiet():
            _prune(module.eval(), batches, ratio, classes)
    except Exception as error:
        # A tracer over unknown code may raise anything.
        raise UnsupportedArchitectureError(name, f"torch-pruning cannot prune it: {reason(error)}") from error


def _prune(module: nn.Module, batches: Sequence[torch.Tensor], ratio: float, classes: int) -> None:
    pruner = torch_pruning.pruner.BasePruner(
        module,
        batches[0][:1],
        torch_pruning.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=_MOST_OF_A_LAYER,
        round_to=_MULTIPLE,
        ignored_layers=[layer for layer in module.modules() if _gives_classes(layer, classes)],
    )
    for batch in batches:
        logits = module(batch)
        torch.autograd.backward(cross_entropy(logits, logits.argmax(1)))
    for group in pruner.step(interactive=True):
        # Rounding down may select all channels of a narrow layer.
        if len(group[0].idxs) < pruner.DG.get_out_channels(group[0].dep.target.module):
            group.prune()
    module.zero_grad(set_to_none=True)
    _estimate_statistics(module, batches)


def _gives_classes(layer: nn.Module, classes: int) -> bool:
    match layer:
        case nn.Linear(out_features=given) | nn.Conv2d(out_channels=given):
            return given == classes
        case _:
            return False


def _estimate_statistics(module: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """Recompute each BatchNorm's mean and variance over all `batches`; only BatchNorms are in train mode for it."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # None: the mean over the batches with equal weights.
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in batches:
            module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch-pruning's warnings about parameters outside of layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
