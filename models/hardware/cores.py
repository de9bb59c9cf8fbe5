"""The cores of this process: how many there are, and how its threads share them."""

from __future__ import annotations

import os
import sys
import threading

import torch

from models.hardware.placement import first_available

# Steps of nice. Refusals under ten times the capacity, median, p90 and p99 in ms on two cores: 0.6, 7 and 24 with 2;
# 0.5, 4.5 and 16 with 5; 0.5, 2.8 and 12 with 10; the same images/s with each. But where others have work for every
# core, 5 leaves a forward a fourth of it, and 10 a tenth.
WAY_GIVEN = 5


# Each of them that waits for the GIL is one more whom the event loop may have to let go first. Answers a second with no
# forward to wait for, on 16 cores with 2, 4, 8 and 16: 433, 529, 556 and 362.
_MOST_DECODE_THREADS = 8


_agreed_cores: int | None = None


# With fewer, workers and the process that runs the forwards would take turns on them.
_LEAST_CORES_FOR_WORKERS = 4


# Each has some memory of its own, and what they all hand in goes through one process.
_MOST_WORKERS = 16


def available_cores() -> int:
    """Cores this process may use: its affinity mask, cut to the quota of its control group (v2) and to what it has
    been told."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _cgroup_quota() or affinity, _agreed_cores or affinity))


def decode_threads() -> int:
    """Threads that decode, where nobody says otherwise: one for each core, and few enough not to keep the event loop
    from the GIL."""
    return min(available_cores(), _MOST_DECODE_THREADS)


def http_workers(device: str) -> int:
    """Processes that read and decode for the one that has the models, where nobody says otherwise: three quarters of
    the cores for a GPU, which one process does not keep busy; 0 where that one does it by itself.

    On an H100 with 16 cores one process answered 687 images/s, 4 workers 1991, 8 2256, 12 2911 (docs/performance.md).
    On a CPU forwards need the cores.
    """
    found = first_available() if device == "auto" else device
    cores = available_cores()
    if not (found.startswith("cuda") and sys.platform.startswith("linux")) or cores < _LEAST_CORES_FOR_WORKERS:
        return 0
    return min(_MOST_WORKERS, cores * 3 // 4)


def use_no_more_cores_than(count: int) -> None:
    """For a process that has a share of a machine by agreement: of a scheduler's accounts the kernel knows nothing.
    Holds for what is made from then on."""
    global _agreed_cores  # noqa: PLW0603 - a fact about the process, like its affinity
    _agreed_cores = count


def _cgroup_quota() -> int | None:
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:  # noqa: PTH123 - a kernel file
            quota, period = file.read().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


def use_one_core_in_this_thread() -> None:
    """For decode workers: they are as many as the cores already, and must not multiply by intra-op threads."""
    torch.set_num_threads(1)


def give_way_in_this_thread() -> None:
    """For threads that compute forwards, and for those that they make: whoever has little to do and soon, as the event
    loop has when it refuses, gets a core before them. On Linux alone, where a priority is a thread's own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + WAY_GIVEN)


def use_cores_in_this_thread(cores: int) -> None:
    """For threads that run forwards. OpenMP keeps the count per thread, so it is set there."""
    torch.set_num_threads(cores)
