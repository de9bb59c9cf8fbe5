"""The two ways to the lens: any network and a batch of its inputs, or an engine and what it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gradless.comparison_run import ComparisonRun
from gradless.peak import prepare_profiler
from gradless.progress import ComparisonProgress
from gradless.records import ARMS, ArmName, Comparison, ComparisonOptions, Progress
from gradless.report import Origin, origin_of
from gradless.subject import subject_of, subject_with
from models.hardware import memory
from models.inference.engine import Engine

_UNSERVED: tuple[ArmName, ...] = tuple(name for name in ARMS if name != "served")


def compare(
    network: nn.Module,
    images: torch.Tensor,
    *,
    arms: tuple[ArmName, ...] = _UNSERVED,
    iterations: int = 5,
    sweep: tuple[int, ...] = (),
    modules: bool = True,
    seconds: float = 60.0,
) -> Comparison:
    """Compare the arms on any network in eval mode, on one batch of its inputs, (N, …), on the network's device.

    The network is left as it is. Not for a compiled one: hooks have it compiled again. Raises ValueError for a
    network in train mode, ComparisonTooLargeError, and what a forward raises under inference_mode.
    """
    if any(module.training for module in network.modules()):
        raise ValueError("the network is in train mode, where comparing it would change it; call eval() first")
    options = ComparisonOptions(
        arms=arms,
        batch_size=len(images),
        iterations=iterations,
        sweep=sweep,
        modules=modules,
        seconds=seconds,
    )
    course = ComparisonProgress(abandoned=lambda: False, on_progress=lambda _: None)
    with _nothing_left_behind(images.device):
        subject = subject_with(network, images)
        kind = type(network).__name__
        origin = Origin(kind, "", kind, str(images.device), str(images.dtype).removeprefix("torch."), "none")
        return ComparisonRun(subject, options, course).run(origin)


def compare_served(
    engine: Engine,
    options: ComparisonOptions,
    *,
    image: torch.Tensor | None = None,
    abandoned: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Comparison:
    """Compare the arms on what the engine serves: on `image`, (3, side, side) uint8 of the model's input size, as
    often as the batch is large, or on seeded random pixels.

    Takes the engine's turn for one forward at a time: serving goes on in between. `abandoned` is asked before each
    forward, and ComparisonAbandonedError raised if it says so; `on_progress` hears of each, in this thread.
    Raises ComparisonTooLargeError.
    """
    with _nothing_left_behind(engine.model.placement.device):
        subject = subject_of(engine, image)
        return ComparisonRun(subject, options, ComparisonProgress(abandoned, on_progress)).run(origin_of(engine))


@contextmanager
def _nothing_left_behind(device: torch.device) -> Iterator[None]:
    """Whatever the caller's mode, leave inference_mode, under which enable_grad alone records nothing; give back
    random state, which Dropout moves, and memory."""
    prepare_profiler()
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        memory.trim(device)
