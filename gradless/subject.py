"""What is compared: a network, its input batches, and the lock to hold while it runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from gradless.device_memory import DeviceMemory
from gradless.records import ArmName


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
    """A network in eval mode whose parameters require gradients, and how to run it.

    `batch` returns inputs of a batch size, the same ones each time, and `input` describes them. `served` is the arm of
    that name, if there is one. `answer` picks the tensor to examine out of an output. `lock` is held during each
    forward. `original_name` maps a name of `named_modules()` to the name in the report. `classes` is True if the answer
    has one number per class.
    """

    network: nn.Module
    device: torch.device
    batch: Callable[[int], Inputs]
    input: str
    served: Arm | None = None
    answer: Callable[[Any], torch.Tensor] = first_tensor
    lock: AbstractContextManager[object] = field(default_factory=nullcontext)
    memory: DeviceMemory = field(default_factory=DeviceMemory)
    original_name: Callable[[str], str] = str
    classes: bool = True

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

    return Subject(network=network, device=images.device, batch=batch, input="the images given")
