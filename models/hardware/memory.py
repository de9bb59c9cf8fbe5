"""Memory of devices and of this process: statistics, within a container's limits, out-of-memory errors, and when
allocators keep or return freed memory."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterable
from contextlib import suppress

import psutil
import torch
from torch import nn

from gradless.memory import memory_limits, release_cached
from models.interface.telemetry import MemoryKind

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Peak of each CUDA device before its counter was last reset, in bytes.
_earlier_peaks: dict[int, int] = {}


def figures(device: torch.device) -> dict[MemoryKind, int]:
    """Return memory statistics in bytes, without synchronizing. On the CPU, `allocated` is the resident size of the
    process, `free` and `total` are the system's or, if less, the container's; `peak` and `reserved` are absent."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "peak": max(torch.cuda.max_memory_allocated(device), _earlier_peaks.get(device.index or 0, 0)),
            "free": free,
            "total": total,
        }
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        reserved = torch.mps.driver_allocated_memory()
        return {
            "allocated": torch.mps.current_allocated_memory(),
            "reserved": reserved,
            "free": total - reserved,
            "total": total,
        }
    system, limits = psutil.virtual_memory(), list(memory_limits())
    return {
        "allocated": psutil.Process().memory_info().rss,
        "free": min([system.available, *(each.room for each in limits)]),
        "total": min([system.total, *(each.limit for each in limits)]),
    }


def begin_peak(device: torch.device) -> None:
    """Reset CUDA's peak counter for a measurement. `figures` still returns the highest peak of all."""
    _earlier_peaks[device.index or 0] = figures(device)["peak"]
    torch.cuda.reset_peak_memory_stats(device)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on `device`, on CUDA with reserved bytes that are
    unused."""
    found = figures(device)
    if device.type == "cuda":
        return found["free"] + found["reserved"] - found["allocated"]
    return found["free"]


def ran_out(error: BaseException) -> bool:
    """Return whether `error` means that a device, or the CPU's allocator, is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # PyTorch's CPU allocator, MPS and OpenVINO have no exception class for it, only messages.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory", "bad_alloc", "bad allocation")
    )


def retain_freed_pages() -> None:
    """Make glibc's allocator keep freed pages instead of returning them to the kernel.

    Each forward allocates the same hundreds of megabytes again; from the kernel they come with a page fault for every
    4 KiB. The thresholds are the largest of mallopt(3); one arena, because only the main one grows beyond 64 MiB.
    """
    for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 32 * 2**20), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        _call_glibc("mallopt", parameter, value)


def _call_glibc(function: str, *arguments: int) -> None:
    """Do nothing without glibc."""
    with suppress(OSError, AttributeError):
        getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)


def trim(device: torch.device) -> None:
    """Return freed memory, which allocators keep for the next forward, to the system (malloc_trim, empty_cache)."""
    release_cached(device)
    if device.type == "cpu":
        _call_glibc("malloc_trim", 0)


def release(devices: Iterable[torch.device], left: weakref.WeakSet[nn.Module]) -> None:
    """Collect modules that are unreachable, reference cycles included, and return their memory to the system.

    Objects frozen by gc.freeze are collected and frozen again only if a module of `left` still exists after the first
    collection: that takes 0.3 s, in which no other thread runs Python.
    """
    gc.collect()
    if left and gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
        gc.freeze()
    for device in devices:
        trim(device)
