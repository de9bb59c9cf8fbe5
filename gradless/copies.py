"""Copies of a network, so that the one that was loaded stays as it is: no flag flipped, no buffer moved, no gradient
left in it."""

from __future__ import annotations

import copy

import torch
from torch import nn


def with_shared_weights(network: nn.Module, *, requires_grad: bool | None = None) -> nn.Module:
    """A copy whose parameters are its own leaves over the same storages, and whose buffers are the same.

    Nothing that only reads them can tell; gradients come to the copy alone. `requires_grad` None: as they are.
    """
    memo: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in network.buffers()}
    for parameter in network.parameters():
        flag = parameter.requires_grad if requires_grad is None else requires_grad
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=flag)
    return copy.deepcopy(network, memo)


def in_train_mode(network: nn.Module) -> nn.Module:
    """A copy with weights and buffers of its own: train mode writes to buffers, and who knows to what else."""
    return copy.deepcopy(network).train()
