"""CPU cores of this process: their number, and how threads share them."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import torch

from models.hardware.placement import first_available

# Niceness added to threads that run forwards. With 5, refusals under overload have a p99 of 16 ms on two cores (24 ms
# with 2, 12 ms with 10), and a forward keeps a fourth of a core that other processes want (a tenth with 10).
NICE_STEPS = 5

# Decode threads compete with the event loop for the GIL: null model on 16 cores, 556 answers/s with 8 and 362 with 16.
_MOST_DECODE_THREADS = 8

# With fewer cores, HTTP workers and the engine process would compete for them.
_LEAST_CORES_FOR_WORKERS = 4
# Each worker needs memory, and one engine process serves them all.
_MOST_WORKERS = 16

_core_limit: int | None = None


def available_cores() -> int:
    """Return the cores that this process may use: the least of its affinity mask, its cgroup quota (v2) and
    `limit_cores`."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _cgroup_quota() or affinity, _core_limit or affinity))


def decode_threads() -> int:
    """Return the default number of decode threads: one a core, and few enough to leave the event loop the GIL."""
    return min(available_cores(), _MOST_DECODE_THREADS)


def worker_decode_threads(total: int | None, workers: int) -> int:
    """Return each HTTP worker's share of `total` decode threads; None is one a core, and no more than one process would
    have."""
    if total is not None:
        return -(-total // workers)
    return min(decode_threads(), -(-available_cores() // workers))


def http_workers(device: str) -> int:
    """Return the default number of HTTP workers: three quarters of the cores for a GPU, which one process does not keep
    busy; 0 on a CPU, where forwards need the cores. H100, 16 cores: 687 images/s without, 2911 with 12 workers.
    """
    found = first_available() if device == "auto" else device
    cores = available_cores()
    if not (found.startswith("cuda") and sys.platform.startswith("linux")) or cores < _LEAST_CORES_FOR_WORKERS:
        return 0
    return min(_MOST_WORKERS, cores * 3 // 4)


def limit_cores(count: int) -> None:
    """Limit the cores that this process uses, for schedulers (Ray) that share a machine without the kernel's knowledge.
    Threads that exist already keep theirs."""
    global _core_limit  # noqa: PLW0603 - a fact about the process, like its affinity
    _core_limit = count


def _cgroup_quota() -> int | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


def use_one_core_in_this_thread() -> None:
    """Use no intra-op threads in this thread. For decode threads, of which there is one for each core already."""
    torch.set_num_threads(1)


def lower_priority_in_this_thread() -> None:
    """Lower the priority of this thread and of those that it creates. For threads that compute forwards, so that the
    event loop gets a core first. Does nothing but on Linux, where each thread has its own priority."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICE_STEPS)
