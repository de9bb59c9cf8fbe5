"""The lens: one forward under every autograd mode, its time and what it keeps for a backward pass.

Retained memory is measured exactly, by `torch.autograd.graph.saved_tensors_hooks`: autograd hands each tensor it
saves to the hook, and the bytes of distinct storages are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import chain
from statistics import median
from time import perf_counter
from typing import get_args

import torch
from torch import nn

from models import devices
from models.comparison import Comparison, Mode, ModeReport, Retained
from models.engine import Engine
from models.network import FeaturesAndLogits

_ENTER: dict[Mode, Callable[[], AbstractContextManager[object]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "set_grad_enabled_false": lambda: torch.set_grad_enabled(False),
    "inference_mode": torch.inference_mode,
}

_SEED = 0


class ComparisonAbandonedError(Exception):
    """Whoever asked for the comparison has gone."""


def compare(
    engine: Engine, *, batch_size: int, iterations: int, abandoned: Callable[[], bool] = lambda: False
) -> Comparison:
    """Run the served network on one batch of seeded random pictures under each mode.

    Rounds are interleaved, so that a machine that slows down slows every mode alike; the first is not counted.
    Takes the engine's turn for one forward at a time: serving goes on in between. `abandoned` is asked before
    each forward; ComparisonAbandonedError if it says so.
    """
    # Under inference_mode, enable_grad alone records nothing: leave it, whoever has called this from within.
    with torch.inference_mode(False):
        return _compare(engine, batch_size, iterations, abandoned)


def _compare(engine: Engine, batch_size: int, iterations: int, abandoned: Callable[[], bool]) -> Comparison:
    model = engine.model
    images = _random_batch(engine, batch_size)
    modes: tuple[Mode, ...] = get_args(Mode)
    seconds: dict[Mode, list[float]] = {mode: [] for mode in modes}
    for _ in range(1 + iterations):
        for mode in modes:
            if abandoned():
                raise ComparisonAbandonedError
            seconds[mode].append(_timed_forward(engine, mode, images))
    retained: dict[Mode, Retained] = {}
    outputs: dict[Mode, tuple[torch.Tensor, bool]] = {}
    for mode in modes:
        with engine.turn:
            outputs[mode], retained[mode] = _observed_forward(model.network, mode, images)
    reference, _ = outputs["inference_mode"]
    return Comparison(
        model=model.name,
        fingerprint=model.fingerprint,
        device=str(model.placement.device),
        batch_size=batch_size,
        iterations=iterations,
        modes=tuple(
            ModeReport(
                mode=mode,
                median_seconds=median(seconds[mode][1:]),
                retained=retained[mode],
                output_requires_grad=outputs[mode][1],
                max_abs_difference=(outputs[mode][0] - reference).abs().max().item(),
            )
            for mode in modes
        ),
    )


def retained_by(forward: Callable[[], object], *, ignoring: Iterable[torch.Tensor]) -> Retained:
    """What autograd keeps while the result of `forward` is held, leaving out the storages of `ignoring`: what
    lives on without autograd, such as parameters, buffers and the input."""
    known = {tensor.untyped_storage().data_ptr() for tensor in ignoring}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        # Detached: an operation that saves its own output would otherwise tie graph and output into a ring that
        # neither reference counts nor the garbage collector can undo.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    # Until here the graph has kept every saved storage alive, so no address has stood for two of them.
    del result
    return Retained(sum(saved.values()), len(saved))


def _random_batch(engine: Engine, batch_size: int) -> torch.Tensor:
    """(N, 3, H, W) normalised. An ordinary tensor: one made under inference_mode would fail the grad mode."""
    model = engine.model
    side = model.transform.crop
    generator = torch.Generator().manual_seed(_SEED)
    pixels = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8, generator=generator)
    with engine.turn, torch.no_grad():
        images: torch.Tensor = model.normalize(pixels.to(model.placement.device))
    return images


def _timed_forward(engine: Engine, mode: Mode, images: torch.Tensor) -> float:
    device = engine.model.placement.device
    with engine.turn, _ENTER[mode]():
        devices.synchronize(device)
        started_at = perf_counter()
        output = engine.model.network(images)
        devices.synchronize(device)
        seconds = perf_counter() - started_at
        # with the turn still held: freeing a graph of hundreds of megabytes is part of nobody else's time
        del output
    return seconds


def _observed_forward(
    network: nn.Module, mode: Mode, images: torch.Tensor
) -> tuple[tuple[torch.Tensor, bool], Retained]:
    seen: list[tuple[torch.Tensor, bool]] = []

    def forward() -> FeaturesAndLogits:
        with _ENTER[mode]():
            output: FeaturesAndLogits = network(images)
        seen.append((output.logits.detach().float().cpu(), output.logits.requires_grad))
        return output

    retained = retained_by(forward, ignoring=chain(network.parameters(), network.buffers(), [images]))
    return seen[0], retained
