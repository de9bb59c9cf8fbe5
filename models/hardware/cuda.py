"""Streams, pinned memory and synchronization: what a GPU needs and a CPU does without. Memory figures are in
models/hardware/memory.py."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch


def use_own_stream_in_this_thread(device: torch.device) -> None:
    """For threads that run forwards at the same time: on CUDA what one of them copies, computes and waits for is its
    own. What was loaded before is there for it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]  # PyTorch's own


class BatchThreadStreams(NamedTuple):
    """`record` is for one recording at a time, in which no work may go astray; what was recorded there runs in `run`,
    one forward after another: cuBLAS works in memory that it has for each stream, and writes its address into the
    recording."""

    record: torch.cuda.Stream
    run: torch.cuda.Stream


@cache
def batch_thread_streams(device: torch.device, lane: int) -> BatchThreadStreams:  # noqa: ARG001 - the cache tells them apart
    """Those of this lane, the same for all models of the process: libraries keep what they have for a stream, 32 MiB on
    an H100, for good."""
    record, run = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]  # PyTorch's own
    return BatchThreadStreams(record, run)


def compile_options(device: torch.device) -> dict[str, Any]:
    """Arguments of torch.compile: on the CPU, weights are frozen into the graph."""
    return {"options": {"freezing": True}} if device.type == "cpu" else {}


def host_batch(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Room for a batch of uint8 on its way to `device`: for CUDA it is pinned, from which alone a copy is
    asynchronous. PyTorch keeps what has been let go for the next batch, once it has been copied."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")


def to_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`batch`, of the CPU, on `device`. On CUDA a copy from pinned memory is not waited for: on the same stream, the
    forward does that."""
    return batch.to(device, non_blocking=device.type == "cuda")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given. Nothing to wait for on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def utilization(device: torch.device) -> float | None:
    """Share of the driver's last sample, 1 s or less, in which a kernel ran, 0..1: by NVML, without synchronising.
    None where there is none, or nvidia-ml-py is not installed."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # noqa: BLE001 - NVML's errors share no root that is there without it; MIG slices have no figure
        return None
