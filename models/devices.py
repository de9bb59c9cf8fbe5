"""CUDA, MPS, CPU: which one, what it can do, its cores. What differs between them in memory is in models/memory.py and,
of a single forward, in models/gradmodes/peak.py."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple

import torch

from models.errors import DeviceUnavailableError

Precision = Literal["fp32", "bf16", "fp16", "int8"]
BackendName = Literal["eager", "compiled", "openvino"]

_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    # What goes in and comes out; int8 is what it multiplies.
    "int8": torch.float32,
}


_LARGEST_BATCH = 32

# Activations of more leave a core's caches.
_IMAGES_A_CORE = 4

# Steps of nice. Refusals under ten times the capacity, median, p90 and p99 in ms on two cores: 0.6, 7 and 24 with 2;
# 0.5, 4.5 and 16 with 5; 0.5, 2.8 and 12 with 10; the same images/s with each. But where others have work for every
# core, 5 leaves a forward a fourth of it, and 10 a tenth.
WAY_GIVEN = 5

# Each of them that waits for the GIL is one more whom the event loop may have to let go first. Answers a second with no
# forward to wait for, on 16 cores with 2, 4, 8 and 16: 433, 529, 556 and 362.
_MOST_DECODE_THREADS = 8

_agreed_cores: int | None = None

# Last-level caches of current servers hold as much.
_LIGHT_WEIGHTS_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model lives, in which floating-point type it computes, and by which backend it is served."""

    device: torch.device
    precision: Precision
    backend: BackendName | Literal["null"]

    @property
    def dtype(self) -> torch.dtype:
        return _DTYPES[self.precision]

    @property
    def dtype_name(self) -> str:
        """As users see it: float32, bfloat16, float16 or int8."""
        return "int8" if self.precision == "int8" else str(self.dtype).removeprefix("torch.")


def place(device: str, precision: Precision, backend: BackendName | Literal["auto"]) -> Placement:
    """The placement asked for. Device `auto` is CUDA, else MPS, else the CPU; backend `auto` is openvino on a CPU
    that has it installed, else eager.

    Raises DeviceUnavailableError for what is not there or does not go together.
    """
    found = torch.device(_first_available() if device == "auto" else _checked(device))
    placement = at_precision(Placement(found, "fp32", _backend(found, backend)), precision)
    if precision == "int8" and importlib.util.find_spec("nncf") is None:
        raise DeviceUnavailableError(str(found), "int8 needs NNCF; pip install 'gradless[int8]'")
    return placement


def at_precision(placement: Placement, precision: Precision) -> Placement:
    """The same device and backend in another precision. Raises DeviceUnavailableError where they cannot compute in
    it."""
    device = placement.device
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceUnavailableError(str(device), "it has no bf16 arithmetic; use fp16 or fp32")
    if precision == "fp16" and device.type == "cpu":
        raise DeviceUnavailableError(str(device), "fp16 is for GPUs; use bf16 or fp32")
    if precision == "int8" and placement.backend != "openvino":
        raise DeviceUnavailableError(str(device), "int8 is for the openvino backend, on a CPU; use bf16 or fp32")
    return replace(placement, precision=precision)


def _backend(device: torch.device, wanted: BackendName | Literal["auto"]) -> BackendName:
    installed = importlib.util.find_spec("openvino") is not None
    if wanted == "auto":
        return "openvino" if device.type == "cpu" and installed else "eager"
    if wanted == "openvino" and device.type != "cpu":
        raise DeviceUnavailableError(str(device), "the openvino backend is for CPUs; use eager or compiled")
    if wanted == "openvino" and not installed:
        raise DeviceUnavailableError(str(device), "OpenVINO is not installed; pip install 'gradless[openvino]'")
    if wanted == "compiled" and device.type == "mps":
        raise DeviceUnavailableError(str(device), "the compiled backend is for CUDA and CPUs; use eager")
    return wanted


def _first_available() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceUnavailableError(name, "use auto, cpu, cuda, cuda:N or mps") from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise DeviceUnavailableError(name, "PyTorch does not find it on this machine")
    return name


# With fewer, fronts and the process that runs the forwards would take turns on them.
_LEAST_CORES_FOR_FRONTS = 4
# Each has some memory of its own, and what they all hand in goes through one process.
_MOST_FRONTS = 16


def available_cores() -> int:
    """Cores this process may use: its affinity mask, cut to the quota of its control group (v2) and to what it has
    been told."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _cgroup_quota() or affinity, _agreed_cores or affinity))


def decode_threads() -> int:
    """Threads that decode, where nobody says otherwise: one for each core, and few enough not to keep the event loop
    from the GIL."""
    return min(available_cores(), _MOST_DECODE_THREADS)


def fronts(device: str) -> int:
    """Processes that read and decode for the one that has the models, where nobody says otherwise: three quarters of
    the cores for a GPU, which one process does not keep busy; 0 where that one does it by itself.

    On an H100 with 16 cores one process answered 687 images/s, 4 fronts 1991, 8 2256, 12 2911 (docs/architecture.md).
    On a CPU forwards need the cores.
    """
    found = _first_available() if device == "auto" else device
    cores = available_cores()
    if not (found.startswith("cuda") and sys.platform.startswith("linux")) or cores < _LEAST_CORES_FOR_FRONTS:
        return 0
    return min(_MOST_FRONTS, cores * 3 // 4)


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


def use_own_stream_in_this_thread(device: torch.device) -> None:
    """For threads that run forwards at the same time: on CUDA what one of them copies, computes and waits for is its
    own. What was loaded before is there for it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]  # PyTorch's own


class LaneStreams(NamedTuple):
    """`record` is for one recording at a time, in which no work may go astray; what was recorded there runs in `run`,
    one forward after another: cuBLAS works in memory that it has for each stream, and writes its address into the
    recording."""

    record: torch.cuda.Stream
    run: torch.cuda.Stream


@cache
def lane_streams(device: torch.device, lane: int) -> LaneStreams:  # noqa: ARG001 - the cache tells them apart
    """Those of this lane, the same for all models of the process: libraries keep what they have for a stream, 32 MiB on
    an H100, for good."""
    record, run = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]  # PyTorch's own
    return LaneStreams(record, run)


@dataclass(frozen=True, slots=True)
class Split:
    """How a batch is cut up for PyTorch's own forward: pieces of up to `piece` images, `workers` of them at a time on
    one core each. One worker means one piece after another, each on all cores."""

    piece: int
    workers: int


def eager_split(device: torch.device, weight_bytes: int) -> Split | None:
    """None where a batch is best run whole. On the CPU it is not: activations of more than some 16 images outgrow
    what the allocator keeps, and the forward is bound by page faults.

    Networks whose weights stay in a core's reach run best in small pieces, one a core: PyTorch's kernels for them are
    too short to share out (EfficientNet-Lite0, two cores: 90 images/s against 75). Larger weights are better read once
    for many images (ResNet-50: 19 against 16).
    """
    if device.type != "cpu":
        return None
    return Split(_IMAGES_A_CORE, workers=available_cores()) if weight_bytes <= _LIGHT_WEIGHTS_BYTES else Split(16, 1)


def batch_size(placement: Placement, weight_bytes: int) -> int:
    """Images of one forward at most, where nobody says otherwise: 32, on a CPU only as many as keep its cores busy.

    More would not be faster there, but whoever comes meanwhile waits for the whole forward: with batches of 32 on two
    cores for a quarter of a second, even if all who are in it have hung up.
    """
    if placement.device.type != "cpu":
        return _LARGEST_BATCH
    split = eager_split(placement.device, weight_bytes) if placement.backend == "eager" else None
    return min(_LARGEST_BATCH, split.piece * split.workers if split else _IMAGES_A_CORE * available_cores())


def records_forwards(device: torch.device) -> bool:
    """Whether the kernels of a forward can be recorded, to be launched by one call: CUDA graphs."""
    return device.type == "cuda"


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
