"""What is compared: a network, batches for it, and the turn to take on its device before each use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from models.inference.engine import Engine
from models.networks.network import FeaturesAndLogits

_SEED = 0

RANDOM_PIXELS = f"random pixels, seed {_SEED}"
UPLOADED_IMAGE = "the uploaded image"


class Inputs(NamedTuple):
    """One batch: `images` as the network takes them, `pixels` (N, 3, side, side) uint8 as the engine does."""

    images: torch.Tensor
    pixels: torch.Tensor | None

    def first(self, count: int) -> Inputs:
        return Inputs(self.images[:count], None if self.pixels is None else self.pixels[:count])

    @property
    def nbytes(self) -> int:
        return self.images.nbytes + (0 if self.pixels is None else self.pixels.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network in eval mode whose parameters require gradients. `batch` makes inputs of a size, the same ones each
    time; `original_name` is how its makers call a module that `named_modules()` calls otherwise; `classes`: its answer
    is a number for each class."""

    network: nn.Module
    device: torch.device
    batch: Callable[[int], Inputs]
    input: str
    engine: Engine | None = None
    turn: AbstractContextManager[object] = field(default_factory=nullcontext)
    original_name: Callable[[str], str] = str
    classes: bool = True

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())


def subject_of(engine: Engine, image: torch.Tensor | None = None) -> Subject:
    """What the engine serves, as it was loaded, on `image`, (3, side, side) uint8 of the model's input size, as often
    as the batch is large; on seeded random pixels without one."""
    model = engine.model
    side = model.transform.crop

    def batch(size: int) -> Inputs:
        if image is None:
            generator = torch.Generator().manual_seed(_SEED)
            pixels = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
        else:
            pixels = image.expand(size, -1, -1, -1).contiguous()
        with engine.lock, torch.no_grad():
            images: torch.Tensor = model.normalize(pixels.to(model.placement.device))
        return Inputs(images, pixels.contiguous(memory_format=torch.channels_last))

    return Subject(
        network=model.network,
        device=model.placement.device,
        batch=batch,
        input=RANDOM_PIXELS if image is None else UPLOADED_IMAGE,
        engine=engine,
        turn=engine.lock,
        original_name=model.network.original_name,
        classes=model.network.classes > 0,
    )


def subject_with(network: nn.Module, images: torch.Tensor) -> Subject:
    """Any network on a batch of its inputs, (N, …). Larger batches repeat it."""
    # An ordinary tensor without a past: an inference tensor would fail the arm grad, one with gradients let frozen
    # parameters record a graph.
    ordinary = images.detach().clone() if images.is_inference() else images.detach()

    def batch(size: int) -> Inputs:
        times = -(-size // len(ordinary))
        repeated = ordinary.repeat(times, *[1] * (ordinary.dim() - 1)) if times > 1 else ordinary
        return Inputs(repeated[:size], None)

    return Subject(network=network, device=images.device, batch=batch, input="the images given")


def answer_of(output: Any) -> torch.Tensor:
    """The tensor to look at: the logits of a classifier cut at its head, the features of a network without classes,
    else the first tensor there is."""
    if isinstance(output, FeaturesAndLogits):
        return output.logits if output.logits.shape[1] else output.features
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise TypeError(f"the network gives no tensor but a {type(output).__name__}")
    return tensors[0]
