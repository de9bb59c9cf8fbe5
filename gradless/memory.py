"""Memory of a device: what is free, within the limits of a container, and the peak that a forward reaches."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch

from gradless.records import Peak

_MEMORY_FILE = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")

# Cgroups version 1 write a huge number where there is no limit; version 2 write "max".
_NO_LIMIT = 2**62


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that this process could still allocate on `device`, or None if that is unknown.

    On the CPU the limits of a container count too. On CUDA, blocks that PyTorch has cached count as free.
    """
    match device.type:
        case "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        case "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        case "cpu":
            return _free_bytes_of_cpu()
        case _:
            return None


def _free_bytes_of_cpu() -> int | None:
    try:
        lines = _MEMORY_FILE.read_text(encoding="ascii").splitlines()
        available_kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # Not Linux.
        return None
    return min([available_kib * 1024, *(limit.room for limit in memory_limits())])


def release_cached(device: torch.device) -> None:
    """Return cached blocks of a GPU's allocator to the device. The CPU's allocator has no cache."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all its work; the CPU has none pending."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class MemoryLimit(NamedTuple):
    """Memory of one control group in bytes: `limit` for all its processes together, and `room` left of it."""

    limit: int
    room: int


class _CgroupFiles(NamedTuple):
    """File names of one cgroup version: limit and use in bytes, and the statistic of reclaimable file pages."""

    tree: str
    limit: str
    used: str
    reclaimable: str


_CGROUP_FILES = {
    "memory": _CgroupFiles("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": _CgroupFiles("", "memory.max", "memory.current", "inactive_file"),
}


def memory_limits() -> Iterator[MemoryLimit]:
    """Yield the limit of each control group of this process that has one, for cgroups version 1 and version 2."""
    try:
        lines = _OWN_CGROUPS.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        files = _CGROUP_FILES.get(controllers)
        if files is None:
            continue
        top = _CGROUPS / files.tree
        group = top / path.lstrip("/")
        # A limit also holds for the groups below it. In a container the path may be the host's: only the top exists.
        for folder in (group, *group.parents):
            if (found := _limit(folder, files)) is not None:
                yield found
            if folder == top:
                break


def _limit(group: Path, files: _CgroupFiles) -> MemoryLimit | None:
    """Return the limit of `group`, or None if the group does not exist or has no limit."""
    try:
        limit = int((group / files.limit).read_text())
        if limit >= _NO_LIMIT:
            return None
        used = int((group / files.used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return MemoryLimit(limit, max(0, limit - used + int(statistics.get(files.reclaimable, 0))))


class Recording:
    """Holds the peak above the level at the start; set when the recording ends."""

    peak = Peak(None)


@contextmanager
def recorded_peak(
    device: torch.device,
    note: str | None = None,
    reset_peak: Callable[[torch.device], object] = torch.cuda.reset_peak_memory_stats,
) -> Iterator[Recording]:
    """Record the peak of what PyTorch's allocator hands out, including what operations allocate temporarily.

    On the CPU it comes from the profiler, which covers this thread; on CUDA from the allocator's counter, which covers
    the process and which `reset_peak` resets. If `note` says why PyTorch cannot measure it, record that note alone.
    """
    recording = Recording()
    match device.type:
        case _ if note is not None:
            yield recording
            recording.peak = Peak(None, note)
        case "cpu":
            with no_garbage_collection(), torch.autograd.profiler.profile(profile_memory=True) as profiler:
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
def no_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector: memory that it frees would be subtracted from the forward's."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _highest(profiler: torch.autograd.profiler.profile) -> int:
    if profiler.kineto_results is None:  # pragma: no cover - a profiler that has ended has results
        raise RuntimeError("the profiler has no results")
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    changes = [int(event.nbytes()) for event in events]  # type: ignore[attr-defined]  # missing from the stub
    return max(accumulate(changes, initial=0))


def prepare_profiler() -> None:
    """Keep the profiler's library from logging each start and stop to stderr, unless KINETO_LOG_LEVEL is set.

    Also run the profiler once, in the thread that imported PyTorch: its first use elsewhere logs a warning.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.autograd.profiler.profile():
        pass
