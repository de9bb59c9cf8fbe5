"""Whole channels taken out of a network, those first whose loss changes its answers least: through torch-pruning.

What is left is a smaller dense network, faster on any device, and not one with zeros in it. Layers that are joined, as
by the sum at the end of a residual block, lose the same channels.
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
from models.networks.architectures.architecture import reason

# Kernels work on so many channels at a time, and a layer of 41 takes as long as one of 48.
_MULTIPLE = 8

# Of a layer's channels, however little they seem to matter: a layer that is nearly gone lets nothing through.
_MOST_OF_A_LAYER = 0.8


def prune(name: str, module: nn.Module, batches: Sequence[torch.Tensor], *, ratio: float, classes: int) -> None:
    """Take that share of the channels, 0..1, out of `module`, in place and in eval mode.

    `batches`, (N, 3, H, W) as the network takes them, of two images or more, are where channels show what they matter:
    by the first-order estimate of how much the loss rises without them, the loss being that of the network's own first
    answer, so that no labels are needed. The same images give the BatchNorms their statistics anew: those of the whole
    network are wrong for what is left of it. Layers that give the classes keep all of theirs.

    Raises UnsupportedArchitectureError where torch-pruning cannot follow the network.
    """
    try:
        with _quiet():
            _prune(module.eval(), batches, ratio, classes)
    except Exception as error:
        # Whatever a tracer and other people's forwards do with one another.
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
        # Rounding goes down, for a narrow layer as far as to nothing.
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
    """Mean and variance of each BatchNorm's inputs over all `batches`; nothing else is in train mode meanwhile."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # None: the mean over the batches, of which none counts more than another.
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
    """Without torch-pruning's remarks on parameters that stand outside of layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
