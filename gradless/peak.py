"""The most memory that a forward has allocated at once, what operations allocate inside, as convolutions do, included.

On the CPU by the profiler's record of PyTorch's allocator, which is of one thread; on CUDA by the caching allocator's
own counter, which is of the process.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch

from gradless.records import Peak
from models.hardware import memory


class Recording:
    """What was allocated at most, above what was at its start; known once it has ended."""

    peak = Peak(None)


@contextmanager
def recorded_peak(device: torch.device, note: str | None = None) -> Iterator[Recording]:
    """Record what this thread allocates; nothing where `note` says why that could not be told."""
    recording = Recording()
    if note is not None:
        yield recording
        recording.peak = Peak(None, note)
        return
    match device.type:
        case "cpu":
            with _no_garbage_collection(), torch.autograd.profiler.profile(profile_memory=True) as profiler:
                yield recording
            recording.peak = Peak(_highest(profiler))
        case "cuda":
            torch.cuda.synchronize(device)
            memory.begin_peak(device)
            before = torch.cuda.memory_allocated(device)
            yield recording
            torch.cuda.synchronize(device)
            recording.peak = Peak(torch.cuda.max_memory_allocated(device) - before)
        case _:
            yield recording
            recording.peak = Peak(None, f"PyTorch counts no peak on {device.type}")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """What a collection would free meanwhile is not the forward's, and would be taken off what it has allocated."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def prepare_profiler() -> None:
    """Keep the profiler's library from telling stderr of each start and stop, unless somebody has asked it to, and
    from complaining there of its first use: that should be in the thread that has imported PyTorch."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.autograd.profiler.profile():
        pass


def _highest(profiler: torch.autograd.profiler.profile) -> int:
    if profiler.kineto_results is None:  # pragma: no cover - it has them once it has ended
        raise RuntimeError("the profiler has no results")
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    changes = [int(event.nbytes()) for event in events]  # type: ignore[attr-defined]  # the stub leaves it out
    return max(accumulate(changes, initial=0))
