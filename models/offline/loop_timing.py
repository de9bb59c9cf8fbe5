"""Time a loop as a script would write it: over a DataLoader, one forward per batch, with gradients and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from gradless.memory import synchronize
from gradless.records import TimeVerdict
from gradless.sentences import time_verdict
from models.interface.errors import JobError
from models.loading.load import LoadedModel
from models.offline import reading
from models.offline.reading import Reading

_MODES: tuple[Callable[[], AbstractContextManager[object]], ...] = (torch.enable_grad, torch.no_grad)


@dataclass(frozen=True, slots=True)
class LoopTimes:
    """Median seconds of a loop with gradients and without. `verdict` says how the time without compares, by rounds."""

    with_gradients: float
    without: float
    verdict: TimeVerdict


@dataclass(frozen=True, slots=True)
class LoopReport:
    """Times of whole loops, with reading and decoding, and of their forwards alone. Unreadable images are left out."""

    model: str
    images: int
    unreadable: int
    batch_size: int
    rounds: int
    end_to_end: LoopTimes
    forward: LoopTimes


@dataclass(slots=True)
class _Loop:
    seconds: float = 0.0
    forward_seconds: float = 0.0
    images: int = 0
    unreadable: int = 0


def time_loops(
    model: LoadedModel, files: Sequence[str], images: Reading, *, batch_size: int, rounds: int, seconds: float
) -> LoopReport:
    """Run the loop in both modes, in alternating order, for up to `rounds` rounds within about `seconds`.

    The process reads the files itself, as DataLoader does by default. Raises JobError if no file can be read.
    """
    started_at = perf_counter()
    _run(model, files[:batch_size], images, batch_size, torch.no_grad)
    loops: list[tuple[_Loop, _Loop]] = []
    while len(loops) < rounds:
        order = [0, 1] if len(loops) % 2 == 0 else [1, 0]
        by_mode = {mode: _run(model, files, images, batch_size, _MODES[mode]) for mode in order}
        loops.append((by_mode[0], by_mode[1]))
        elapsed = perf_counter() - started_at
        if elapsed + elapsed / len(loops) > seconds:
            break
    last = loops[-1][0]
    if not last.images:
        raise JobError("none of the images can be read")
    return LoopReport(
        model.name,
        last.images,
        last.unreadable,
        batch_size,
        len(loops),
        _times([(grad.seconds, without.seconds) for grad, without in loops]),
        _times([(grad.forward_seconds, without.forward_seconds) for grad, without in loops]),
    )


def _run(
    model: LoadedModel,
    files: Sequence[str],
    images: Reading,
    batch_size: int,
    mode: Callable[[], AbstractContextManager[object]],
) -> _Loop:
    loop, device = _Loop(), model.placement.device
    began_at = perf_counter()
    with mode():
        for batch in reading.batches(files, images, batch_size=batch_size, workers=0):
            loop.unreadable += len(batch.faults)
            if not len(batch.pixels):
                continue
            forward_at = perf_counter()
            output = model.network(model.normalize(batch.pixels.to(device)))
            synchronize(device)
            loop.forward_seconds += perf_counter() - forward_at
            loop.images += len(batch.pixels)
            # Its graph, which a script frees too when it assigns the next output.
            del output
    loop.seconds = perf_counter() - began_at
    return loop


def _times(rounds: Sequence[tuple[float, float]]) -> LoopTimes:
    grad, without = zip(*rounds, strict=True)
    return LoopTimes(median(grad), median(without), time_verdict(without, grad))
