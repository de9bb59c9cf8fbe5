"""The arms: the ways to run one forward that the lens compares.

Arms that change a network run a copy, so that the network itself keeps its flags, buffers and gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from gradless.records import ArmName
from gradless.subject import Arm, Inputs, Subject

_MODES: dict[ArmName, Callable[[], AbstractContextManager[object]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "set_grad_enabled_false": lambda: torch.set_grad_enabled(False),
    "inference_mode": torch.inference_mode,
    "frozen": torch.enable_grad,
    "train": torch.no_grad,
}


def arm_of(name: ArmName, subject: Subject) -> Arm:
    """Return the arm called `name`.

    Raises ValueError for `served` if the subject is not served, and whatever copying the network raises.
    """
    match name:
        case "served":
            if subject.served is None:
                raise ValueError("the network is not served")
            return subject.served
        case "frozen":
            return arm_with(name, copy_with_shared_weights(subject.network, requires_grad=False))
        case "train":
            # A full copy: train mode writes to buffers.
            return arm_with(name, copy.deepcopy(subject.network).train())
        case _:
            return arm_with(name, subject.network)


def arm_with(name: ArmName, network: nn.Module) -> Arm:
    """Return the arm called `name`, any but `served`, for `network`."""
    enter = _MODES[name]

    def forward(inputs: Inputs) -> Any:
        with enter():
            return network(inputs.images)

    return Arm(name=name, forward=forward, network=network)


def copy_with_shared_weights(network: nn.Module, *, requires_grad: bool | None = None) -> nn.Module:
    """Return a copy whose parameters are new leaves over the same storages, and whose buffers are the same tensors.

    Gradients accumulate in the copy alone. `requires_grad` None keeps each parameter's flag.
    """
    memo: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in network.buffers()}
    for parameter in network.parameters():
        flag = parameter.requires_grad if requires_grad is None else requires_grad
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=flag)
    return copy.deepcopy(network, memo)
