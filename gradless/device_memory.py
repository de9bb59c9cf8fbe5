"""Memory of a device: how much is free, resetting its peak counter, releasing cached blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gradless.cgroups import memory_limits

_MEMORY_FILE = Path("/proc/meminfo")


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
    """Return cached blocks of a GPU's allocator to the device. Do nothing on the CPU, whose allocator has no cache."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all its work; the CPU has none pending."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The memory functions that a comparison calls. A process that serves models passes its own."""

    free_bytes: Callable[[torch.device], int | None] = free_bytes
    reset_peak: Callable[[torch.device], object] = torch.cuda.reset_peak_memory_stats
    release: Callable[[torch.device], object] = release_cached
