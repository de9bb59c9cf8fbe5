"""Measure the peak memory of a forward, including what operations allocate temporarily, as convolutions do.

On the CPU from the profiler's record of PyTorch's allocator, which covers one thread. On CUDA from the caching
allocator's counter, which covers the process.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch

from gradless.records import Peak


class Recording:
    """Holds the peak above the level at the start; set when the recording ends."""

    peak = Peak(None)


@contextmanager
def recorded_peak(
    device: torch.device,
    note: str | None = None,
    reset_peak: Callable[[torch.device], object] = torch.cuda.reset_peak_memory_stats,
) -> Iterator[Recording]:
    """Record what this thread allocates. If `note` says why PyTorch cannot measure it, record that note alone.

    `reset_peak` resets the counter of a CUDA device.
    """
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
            reset_peak(device)
            before = torch.cuda.memory_allocated(device)
            yield recording
            torch.cuda.synchronize(device)
            recording.peak = Peak(torch.cuda.max_memory_allocated(device) - before)
        case _:
            yield recording
            recording.peak = Peak(None, f"PyTorch counts no peak on {device.type}")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector: memory that it frees would be subtracted from the forward's."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def prepare_profiler() -> None:
    """Keep the profiler's library from logging each start and stop to stderr, unless KINETO_LOG_LEVEL is set.

    Also run the profiler once, in the thread that imported PyTorch: its first use elsewhere logs a warning.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.autograd.profiler.profile():
        pass


def _highest(profiler: torch.autograd.profiler.profile) -> int:
    if profiler.kineto_results is None:  # pragma: no cover - a profiler that has ended has results
        raise RuntimeError("the profiler has no results")
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    changes = [int(event.nbytes()) for event in events]  # type: ignore[attr-defined]  # missing from the stub
    return max(accumulate(changes, initial=0))
