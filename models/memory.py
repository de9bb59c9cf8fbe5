"""Memory, of devices and of this process: how much there is, container limits included, whether it has run out,
keeping what a forward has freed for the next, and giving it back."""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import nn

from models.telemetry import MemoryKind

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def figures(device: torch.device) -> dict[MemoryKind, int]:
    """In bytes, without synchronising. On the CPU `allocated` is the resident size of the process,
    `free` what the system could give, `peak` and `reserved` are absent."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "peak": torch.cuda.max_memory_allocated(device),
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
    system = psutil.virtual_memory()
    return {"allocated": psutil.Process().memory_info().rss, "free": system.available, "total": system.total}


def free_bytes(device: torch.device) -> int:
    """What this process could still allocate on `device`: on the CPU, within the limits of its control groups; on
    CUDA, with what PyTorch has reserved and does not use."""
    found = figures(device)
    if device.type == "cpu":
        return min([found["free"], *_room_in_cgroups(_CGROUPS, _OWN_CGROUP)])
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


def _room_in_cgroups(root: Path, own: Path) -> Iterator[int]:
    """Bytes below the limit of each control group that this process is in and that has one, be they of version 1,
    whose memory controller has a tree of its own, or of version 2."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        files = {"memory": _VERSION_1, "": _VERSION_2}.get(controllers)
        if files is None:
            continue
        top = root / files.tree
        group = top / path.lstrip("/")
        # A limit holds for the groups below it. In a container the path may be the host's, and only the top be there.
        for folder in (group, *group.parents):
            if (room := _room(folder, files)) is not None:
                yield room
            if folder == top:
                break


class _Files(NamedTuple):
    """Where a version of control groups says what: limit and use in bytes, and in its statistics the pages of files
    not used lately, which are given up when somebody needs them."""

    tree: str
    limit: str
    used: str
    reclaimable: str


_VERSION_1 = _Files("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files("", "memory.max", "memory.current", "inactive_file")


def _room(group: Path, files: _Files) -> int | None:
    try:
        limit, used = (int((group / name).read_text()) for name in (files.limit, files.used))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        # No such group, or no limit: version 2 says "max".
        return None
    return max(0, limit - used + int(statistics.get(files.reclaimable, 0)))
