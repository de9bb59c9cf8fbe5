"""The interface of a backend, one way to run a forward, and what backends have in common. A backend knows nothing of
queues or batch formation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from models.hardware import cores
from models.interface.request import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits

DEFAULT_CACHE_FOLDER = Path("~/.cache/gradless")

MAX_BATCH_SIZE = 32
# Activations of more images do not fit into the caches of a core.
IMAGES_PER_CORE = 4

# Above any batch that is served; torch.export needs a bound for its shape constraints.
_MAX_EXPORTED_BATCH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """How a backend is made.

    `max_batch_size`: images of one forward at most; None leaves it to the backend.
    `fixed_shape`: every forward has one shape, to which batches are padded. An image's result then does not depend on
    the other images of its batch.
    `cache_folder`: where a backend keeps converted models. `fresh`: convert again, and replace what the cache holds.
    """

    max_batch_size: int | None = None
    fixed_shape: bool = False
    cache_folder: Path = DEFAULT_CACHE_FOLDER
    fresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchHints:
    """How a backend prefers its batches. The engine and the batcher follow it.

    `max_batch_size`: images of one batch at most.
    `warm_up_sizes`: batch sizes to run before the model is ready.
    `max_concurrent_batches`: batches that may run at the same time. Two keep the device from waiting between batches;
    one where a second batch would only slow down the first.
    `overlap_min_size`: smallest batch whose images run on separate cores. The next batch may then start on the cores
    that are free. None if a batch occupies the whole device until it ends.
    `intra_op_threads`: threads that PyTorch may use for one operation in the thread that calls `run`. More than one
    only where PyTorch runs the forward: its idle threads spin, and take cores from the decoders.
    `memory_note`: why PyTorch cannot measure the memory that `run` takes; None where it can.
    `retained_note`: why what autograd keeps of `run` could not be observed; None where PyTorch runs the forward.
    """

    max_batch_size: int
    warm_up_sizes: tuple[int, ...]
    max_concurrent_batches: int = 1
    overlap_min_size: int | None = None
    intra_op_threads: int = 1
    memory_note: str | None = None
    retained_note: str | None = None


class Backend(Protocol):
    """One way to run a model's forward. Made as `Backend(model, options)`, ready to be warmed up."""

    hints: BatchHints
    network: nn.Module | None
    """The module that `run` calls; None if PyTorch does not run a module."""

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:
        """Return features (N, D) and logits (N, C), of a floating-point type and on a device of the backend's choice,
        for (N, 3, side, side) uint8 pixels on the CPU, channels last in memory.

        Called under inference_mode, by up to `hints.max_concurrent_batches` threads at the same time. A backend that
        runs a batch in pieces raises AllCancelledError if the token is cancelled before a piece. If memory runs out, it
        raises MemoryError, or an error that `memory.ran_out` recognizes.
        """

    def close(self) -> None:
        """End the backend's threads, if it has any. Nothing calls `run` after that."""
        return


def default_max_batch_size(device: torch.device) -> int:
    """Return 32, or on a CPU as many images as keep its cores busy: larger batches are not faster there, and a new
    request waits for the whole forward."""
    if device.type != "cpu":
        return MAX_BATCH_SIZE
    return min(MAX_BATCH_SIZE, IMAGES_PER_CORE * cores.available_cores())


def to_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy `batch` from the CPU to `device`. On CUDA the copy from pinned memory is asynchronous; the forward waits for
    it on the same stream."""
    return batch.to(device, non_blocking=device.type == "cuda")


def normalized(model: LoadedModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return (N, 3, H, W) uint8 pixels as the images that the network takes, on its device and in its precision."""
    images: torch.Tensor = model.normalize(to_device(pixels, model.placement.device))
    return images.to(model.placement.dtype)


def padded(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """Return (N, 3, H, W) pixels with blank images appended up to `count`, channels last in memory."""
    if len(pixels) == count:
        return pixels
    whole = torch.empty((count, *pixels.shape[1:]), dtype=pixels.dtype, memory_format=torch.channels_last)
    whole[: len(pixels)] = pixels
    whole[len(pixels) :] = 0
    return whole


def next_multiple(count: int, of: int) -> int:
    """Return the least multiple of `of` that is not below `count`."""
    return -(-count // of) * of


def buckets(max_batch_size: int) -> tuple[int, ...]:
    """Return 1, 2, 4 … and `max_batch_size` itself: the sizes that a backend compiles or records."""
    powers = [2**power for power in range(max_batch_size.bit_length()) if 2**power < max_batch_size]
    return (*powers, max_batch_size)


class _FromPixels(nn.Module):
    """The network with its normalization, as it is exported."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.normalize = model.normalize
        self.network = model.network

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer: FeaturesAndLogits = self.network(self.normalize(pixels.permute(0, 3, 1, 2)))
        return answer if self.network.classes else (answer.features,)


def exported(model: LoadedModel) -> torch.export.ExportedProgram:
    """Return the network of a model on a CPU, for a backend that converts it for another engine. It maps
    (N, side, side, 3) uint8, 1 <= N <= 1024, to features (N, D) and, if there are classes, logits (N, C), both float32.
    `torch.onnx.export`, for which onnxscript must be installed, takes it too."""
    side = model.transform.crop
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=_MAX_EXPORTED_BATCH)
    with torch.no_grad():
        return torch.export.export(_FromPixels(model).eval(), (example,), dynamic_shapes=({0: batch},))
