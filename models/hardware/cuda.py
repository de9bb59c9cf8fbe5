"""CUDA streams, pinned memory and synchronization. Memory statistics are in models/hardware/memory.py."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch


def use_own_stream_in_this_thread(device: torch.device) -> None:
    """Give this thread a CUDA stream of its own, so that threads copy, compute and wait independently. Waits first for
    what was loaded before. Does nothing on other devices."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]  # PyTorch's own


class BatchThreadStreams(NamedTuple):
    """`record`: for one recording at a time, without other work. `run`: for replays of those recordings, one after
    another, because cuBLAS writes the address of its workspace, one for each stream, into a recording."""

    record: torch.cuda.Stream
    run: torch.cuda.Stream


@cache
def batch_thread_streams(device: torch.device, number: int) -> BatchThreadStreams:  # noqa: ARG001 - a key of the cache
    """Return the streams of that batch thread, shared by all models of the process: libraries never free their memory
    for a stream, 32 MiB on an H100."""
    record, run = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]  # PyTorch's own
    return BatchThreadStreams(record, run)


def compile_options(device: torch.device) -> dict[str, Any]:
    """Return arguments of torch.compile. On the CPU, weights are frozen into the graph."""
    return {"options": {"freezing": True}} if device.type == "cpu" else {}


def host_batch(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return an uninitialized uint8 batch on the host, to be copied to `device`. For CUDA it is pinned, which makes the
    copy asynchronous; PyTorch reuses pinned memory after the copy."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")


def to_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy `batch` from the CPU to `device`. On CUDA the copy from pinned memory is asynchronous; the forward waits for
    it on the same stream."""
    return batch.to(device, non_blocking=device.type == "cuda")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work. Does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def utilization(device: torch.device) -> float | None:
    """Return the share of the driver's last sample (1 s or less) in which a kernel ran, 0..1, without synchronizing.
    None without CUDA or nvidia-ml-py."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # noqa: BLE001 - NVML's errors have no common base class; MIG slices have no utilization
        return None
