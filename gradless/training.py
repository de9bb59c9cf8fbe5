"""Effects of train mode under no_grad: BatchNorm updates its statistics, and Dropout is active."""

from __future__ import annotations

import torch
from torch import nn

from gradless.records import TrainFacts
from gradless.subject import Arm, Inputs, Subject

_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# Relative to the largest logit: differences up to here come from the order of additions.
_TOLERANCE = 1e-5


def train_facts(arm: Arm, subject: Subject, inputs: Inputs) -> TrainFacts:
    """Compare the arm `train`, which has run at least once, with the network that it was copied from."""
    if arm.network is None:  # pragma: no cover - this arm has a network
        raise ValueError("the arm has no network")
    before, after = _batchnorm_buffers(subject.network), _batchnorm_buffers(arm.network)
    one, other = (subject.answer(arm.forward(inputs)) for _ in range(2))
    return TrainFacts(
        batchnorm_buffers=len(after),
        batchnorm_buffers_moved=sum(not torch.equal(before[name], buffer) for name, buffer in after.items()),
        runs_agree=bool((one - other).abs().max() <= _TOLERANCE * one.abs().max()),
    )


def _batchnorm_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return running mean, running variance and batch count of each BatchNorm, by name."""
    return {
        f"{name}.{buffer_name}": buffer
        for name, module in network.named_modules()
        if isinstance(module, _BATCHNORMS)
        for buffer_name, buffer in module.named_buffers(recurse=False)
    }
