"""The arms: the ways to run one forward that the lens compares."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradless import copies
from gradless.records import ArmName
from gradless.subject import Inputs, Subject
from models.inference.engine import Engine
from models.networks.network import FeaturesAndLogits

_MODES: dict[ArmName, Callable[[], AbstractContextManager[object]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "set_grad_enabled_false": lambda: torch.set_grad_enabled(False),
    "inference_mode": torch.inference_mode,
    "frozen": torch.enable_grad,
    "train": torch.no_grad,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """`forward` runs once, in the arm's mode, and gives its output in whatever mode its caller is. `network` is the
    module that runs, None where PyTorch has none; `memory_note` says why PyTorch cannot tell its peak, if so."""

    name: ArmName
    forward: Callable[[Inputs], Any]
    network: nn.Module | None
    memory_note: str | None = None


def arm_of(name: ArmName, subject: Subject) -> Arm:
    """The arm of that name. Raises what a network that cannot be copied raises, and ValueError for `served` of one
    that is not."""
    match name:
        case "served":
            if subject.engine is None:
                raise ValueError("no engine serves it")
            return _served(subject.engine)
        case "frozen":
            return over(name, copies.with_shared_weights(subject.network, requires_grad=False))
        case "train":
            return over(name, copies.in_train_mode(subject.network))
        case _:
            return over(name, subject.network)


def over(name: ArmName, network: nn.Module) -> Arm:
    """The arm of that name, any but `served`, with `network` in it."""
    enter = _MODES[name]

    def forward(inputs: Inputs) -> Any:
        with enter():
            return network(inputs.images)

    return Arm(name=name, forward=forward, network=network)


def _served(engine: Engine) -> Arm:
    def forward(inputs: Inputs) -> FeaturesAndLogits:
        if inputs.pixels is None:  # pragma: no cover - a subject with an engine has them
            raise ValueError("there are no pixels to serve")
        # No batch that is served is larger.
        answers = [engine.forward(pixels) for pixels in torch.split(inputs.pixels, engine.max_batch_size)]
        if len(answers) == 1:
            return answers[0]
        # What is joined is of the kind of its parts.
        with torch.inference_mode(answers[0].features.is_inference()):
            return FeaturesAndLogits(*map(torch.cat, zip(*answers, strict=True)))

    return Arm(name="served", forward=forward, network=engine.served_network, memory_note=engine.memory_note)
