"""What is compared, and the arms: the ways to run one forward of it.

Arms that change a network run a copy, so that the network itself keeps its flags, buffers and gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from gradless import memory
from gradless.records import ArmName

_MODES: dict[ArmName, Callable[[], AbstractContextManager[object]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "set_grad_enabled_false": lambda: torch.set_grad_enabled(False),
    "inference_mode": torch.inference_mode,
    "frozen": torch.enable_grad,
    "train": torch.no_grad,
}


class Inputs(NamedTuple):
    """One batch: `images` for the network, and `pixels` for the arm `served`, None without that arm."""

    images: torch.Tensor
    pixels: torch.Tensor | None

    def first(self, count: int) -> Inputs:
        return Inputs(self.images[:count], None if self.pixels is None else self.pixels[:count])

    @property
    def nbytes(self) -> int:
        return self.images.nbytes + (0 if self.pixels is None else self.pixels.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to run the forward. `forward` enters the arm's mode, runs once and returns the output.

    `network` is the module that runs, or None if it is no PyTorch module. `memory_note` says why PyTorch cannot measure
    the peak, or is None if it can.
    """

    name: ArmName
    forward: Callable[[Inputs], Any]
    network: nn.Module | None
    memory_note: str | None = None


def first_tensor(output: Any) -> torch.Tensor:
    """Return the first tensor of a network's output. Raises TypeError if there is none."""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise TypeError(f"the network returns no tensor but a {type(output).__name__}")
    return tensors[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network in eval mode whose parameters require gradients, how to run it, and how the report describes it.

    `batch` returns inputs of a batch size, the same ones each time, and `input` describes them. `served` is the arm of
    that name, if there is one. `answer` picks the tensor to examine out of an output; `classes` is True if it has one
    number per class. `lock` is held during each forward. `original_name` maps a name of `named_modules()` to the name
    in the report. A process that serves models passes its own functions for a device's memory.
    """

    network: nn.Module
    device: torch.device
    batch: Callable[[int], Inputs]
    input: str
    model: str
    architecture: str
    dtype: str
    fingerprint: str = ""
    backend: str = "none"
    served: Arm | None = None
    answer: Callable[[Any], torch.Tensor] = first_tensor
    classes: bool = True
    lock: AbstractContextManager[object] = field(default_factory=nullcontext)
    original_name: Callable[[str], str] = str
    free_bytes: Callable[[torch.device], int | None] = memory.free_bytes
    reset_peak: Callable[[torch.device], object] = torch.cuda.reset_peak_memory_stats
    release: Callable[[torch.device], object] = memory.release_cached

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())


def subject_with(network: nn.Module, images: torch.Tensor) -> Subject:
    """Return the subject for any network and a batch of its inputs, (N, …). Larger batches repeat the inputs."""
    # The arm grad fails on an inference tensor. The arm frozen would record a graph for an input that requires grad.
    with torch.inference_mode(False):
        ordinary = images.detach().clone() if images.is_inference() else images.detach()

    def batch(size: int) -> Inputs:
        times = -(-size // len(ordinary))
        repeated = ordinary.repeat(times, *[1] * (ordinary.dim() - 1)) if times > 1 else ordinary
        return Inputs(repeated[:size], None)

    kind = type(network).__name__
    return Subject(
        network=network,
        device=images.device,
        batch=batch,
        input="the images given",
        model=kind,
        architecture=kind,
        dtype=str(images.dtype).removeprefix("torch."),
    )


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
