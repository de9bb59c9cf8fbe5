"""Memory, of devices and of this process: how much there is, a container's limits included, whether it
has run out, keeping what a forward has freed for the next, and giving it back."""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref

import psutil
import torch
from torch import nn

from gradless.cgroups import memory_limits
from models.interface.telemetry import MemoryKind

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Of each CUDA device, the most that had been allocated at once before its counter last began anew.
_earlier_peaks: dict[int, int] = {}


def figures(device: torch.device) -> dict[MemoryKind, int]:
    """In bytes, without synchronising. On the CPU `allocated` is the resident size of the process, `free` and `total`
    are the system's or, where that is less, those of a container, `peak` and `reserved` are absent."""
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
    """Have CUDA's counter of the most that was allocated at once begin anew, for a measurement; `figures` goes on from
    the highest of all."""
    _earlier_peaks[device.index or 0] = figures(device)["peak"]
    torch.cuda.reset_peak_memory_stats(device)


def free_bytes(device: torch.device) -> int:
    """What this process could still allocate on `device`: on CUDA, with what PyTorch has reserved and does not use."""
    found = figures(device)
    if device.type == "cuda":
        return found["free"] + found["reserved"] - found["allocated"]
    return found["free"]


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that a device, or the CPU's allocator, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # PyTorch's CPU allocator, MPS and OpenVINO have no class of their own for it, only words.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory", "bad_alloc", "bad allocation")
    )


def keep_freed() -> None:
    """Let glibc's allocator keep what is freed instead of giving it back to the kernel.

    A forward frees and asks for the same hundreds of megabytes batch after batch; given back, each comes with a page
    fault for every 4 KiB. Thresholds are at their largest (mallopt(3)); one arena, because only the main one grows
    beyond 64 MiB. Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 32 * 2**20), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(parameter, value)


def give_back(device: torch.device) -> None:
    """Return memory that PyTorch has freed to the system, which allocators keep for the next forward: for others, or
    for pieces of another size."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            # No glibc.
            return


def let_go(device: torch.device, left: weakref.WeakSet[nn.Module]) -> None:
    """Return the memory of modules that nothing refers to, or nothing but themselves: to the allocator, and from there
    to the system.

    Frozen objects (gc.freeze) are looked through, and frozen again, only where one of `left` is still there without
    that: it takes 0.3 s of processor time, in which no other thread runs Python.
    """
    gc.collect()
    if left and gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
        gc.freeze()
    give_back(device)
