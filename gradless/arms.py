"""What is compared, and the arms: the ways to run one forward of it.

Each arm runs a copy, so that the network itself keeps its flags, buffers, gradients and caches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from gradless import memory
from gradless.records import ArmName
from gradless.retained import bytes_of

_MODES: dict[ArmName, Callable[[], AbstractContextManager[object]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "set_grad_enabled_false": lambda: torch.set_grad_enabled(False),
    "inference_mode": torch.inference_mode,
    "frozen": torch.enable_grad,
    "train": torch.no_grad,
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """Arguments for the network: a batch of `size`, and `pixels` for the arm `served`, None without that arm."""

    size: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    pixels: torch.Tensor | None = None

    def resized(self, size: int) -> Inputs:
        """Cut or repeat each tensor whose first dimension is the batch's. Other arguments stay as they are."""
        if size == self.size:
            return self

        def resize(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dim() == 0 or len(tensor) != self.size:
                return tensor
            times = -(-size // self.size)
            return (tensor.repeat(times, *[1] * (tensor.dim() - 1)) if times > 1 else tensor)[:size]

        return self._with(resize, size)

    @property
    def tensors(self) -> list[torch.Tensor]:
        leaves = tree_leaves((self.args, dict(self.kwargs), self.pixels))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    @property
    def nbytes(self) -> int:
        return sum(map(bytes_of, self.tensors))

    def copied(self) -> Inputs:
        """Return the same with tensors of its own."""
        return self._with(torch.clone, self.size)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor], size: int) -> Inputs:
        args, kwargs, pixels = tree_map_only(torch.Tensor, change, (self.args, dict(self.kwargs), self.pixels))
        return Inputs(size, args, kwargs, pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to run the forward. `forward` enters the arm's mode, runs once and returns the output.

    `network` is the module that runs, or None if it is no PyTorch module. `memory_note` says why PyTorch cannot measure
    the peak, or is None if it can; `retained_note` likewise for what autograd keeps.
    """

    name: ArmName
    forward: Callable[[Inputs], Any]
    network: nn.Module | None
    memory_note: str | None = None
    retained_note: str | None = None


def tensors_in(output: Any) -> list[torch.Tensor]:
    """Return the tensors in a network's output, in order. Raises TypeError if there is none."""
    tensors = list(_tensors_in(output))
    if not tensors:
        raise TypeError(f"the network returns no tensor but a {type(output).__name__}")
    return tensors


def _tensors_in(output: Any) -> Iterator[torch.Tensor]:
    for leaf in tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from _tensors_in(list(leaf.values()))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _tensors_in([getattr(leaf, name) for name in leaf.__dataclass_fields__])


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network in eval mode whose parameters require gradients, how to run it, and how the report describes it.

    `batch` returns inputs of a batch size, the same ones each time, and `input` describes them. Memory and time are
    predicted from the first of `trial_sizes` that an arm can run. `served` is the arm of that name, if there is one.
    `answer` picks what to examine out of an output; `classes` is True if that is one number per class. `lock` is held
    during each forward. `original_name` maps a name of `named_modules()` to the name in the report. A process that
    serves models passes its own functions for a device's memory.
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
    # In train mode BatchNorm needs more than one value per channel, which one image may not have.
    trial_sizes: tuple[int, ...] = (1, 2)
    served: Arm | None = None
    answer: Callable[[Any], Any] = lambda output: output
    classes: bool = False
    lock: AbstractContextManager[object] = field(default_factory=nullcontext)
    original_name: Callable[[str], str] = str
    free_bytes: Callable[[torch.device], int | None] = memory.free_bytes
    reset_peak: Callable[[torch.device], object] = torch.cuda.reset_peak_memory_stats
    release: Callable[[torch.device], object] = memory.release_cached

    @property
    def weight_bytes(self) -> int:
        return sum(map(bytes_of, (*self.network.parameters(), *self.network.buffers())))


def subject_with(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Subject, int]:
    """Return the subject for any network and the arguments of its forward, and their batch size.

    That is the first dimension of the first tensor. Raises TypeError if there is no tensor.
    """
    first = next((leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)), None)
    if first is None:
        raise TypeError("compare() needs a tensor among the arguments of the network")
    # Copied, since a network may write to its input. The arm grad fails on an inference tensor; the arm frozen would
    # record a graph for an input that requires grad.
    with torch.inference_mode(False):
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), (args, dict(kwargs)))
    inputs = Inputs(len(first) if first.dim() else 1, args, kwargs)
    kind = type(network).__name__
    subject = Subject(
        network=network,
        device=first.device,
        batch=lambda size: inputs.resized(size).copied(),
        input="the inputs given",
        model=kind,
        architecture=kind,
        dtype=str(first.dtype).removeprefix("torch."),
        trial_sizes=(1, 2, inputs.size),
    )
    return subject, inputs.size


def arm_of(name: ArmName, subject: Subject) -> Arm:
    """Return the arm called `name`. Raises what copying the network raises, if the arm cannot do without a copy."""
    match name:
        case "served":
            if subject.served is None:
                raise ValueError("the network is not served")
            return subject.served
        case "frozen":
            # Under no_grad, since the parameters of a copied scripted module would be no leaves.
            with torch.no_grad():
                network = copy_of(subject.network)
            # Scripted modules have no requires_grad_().
            for parameter in network.parameters():
                parameter.requires_grad_(False)
        case "train":
            # With weights of its own.
            network = copy_of(subject.network, weights=True).train()
        case _:
            network = subject.network
            with suppress(Exception):
                network = copy_of(network)
    enter = _MODES[name]

    def forward(inputs: Inputs) -> Any:
        with enter():
            return network(*inputs.args, **inputs.kwargs)

    return Arm(name=name, forward=forward, network=network)


def copy_of(network: nn.Module, *, weights: bool = False) -> nn.Module:
    """Return a copy with state of its own. Without `weights`, its parameters are new leaves over the same storages.

    Attributes that cannot be copied, as locks, are shared.
    """
    memo: dict[int, Any] = {}
    if not weights:
        for parameter in network.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    # Copied outside inference_mode they would become ordinary tensors, which work where these fail.
    with torch.inference_mode():
        memo |= {id(buffer): buffer.clone() for buffer in network.buffers() if buffer.is_inference()}
    try:
        return copy.deepcopy(network, dict(memo))
    except Exception:  # noqa: BLE001 - an attribute's copying may raise anything
        for module in network.modules():
            for name, value in vars(module).items():
                if name != "_modules" and not _can_be_copied(value, memo):
                    memo[id(value)] = value
        return copy.deepcopy(network, memo)


def _can_be_copied(value: object, memo: Mapping[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # noqa: BLE001 - an attribute's copying may raise anything
        return False
    return True
