"""What train mode does although no_grad is on: BatchNorm learns, Dropout drops. Only eval() stops them."""

from __future__ import annotations

import torch
from torch import nn

from gradless.arms import Arm
from gradless.records import TrainFacts
from gradless.subject import Inputs, answer_of

_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# Largest difference, relative to the largest logit, that the order of additions makes.
_TOLERANCE = 1e-5


def train_facts(arm: Arm, evaluated: nn.Module, inputs: Inputs) -> TrainFacts:
    """Of the arm `train`, which has run at least once, against the network that it was copied from."""
    if arm.network is None:  # pragma: no cover - it has one
        raise ValueError("the arm has no network")
    before, after = _batchnorm_buffers(evaluated), _batchnorm_buffers(arm.network)
    one, other = (answer_of(arm.forward(inputs)) for _ in range(2))
    return TrainFacts(
        batchnorm_buffers=len(after),
        batchnorm_buffers_moved=sum(not torch.equal(before[name], buffer) for name, buffer in after.items()),
        runs_agree=bool((one - other).abs().max() <= _TOLERANCE * one.abs().max()),
    )


def _batchnorm_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Running mean, running variance and number of batches of each BatchNorm, by name."""
    return {
        f"{name}.{buffer_name}": buffer
        for name, module in network.named_modules()
        if isinstance(module, _BATCHNORMS)
        for buffer_name, buffer in module.named_buffers(recurse=False)
    }
