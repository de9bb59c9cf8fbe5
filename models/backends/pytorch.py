"""Backends that run PyTorch: its own forward, torch.compile, and next to nothing, to test the server itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch

from models.backends.backend import (
    IMAGES_PER_CORE,
    MAX_BATCH_SIZE,
    Backend,
    BackendOptions,
    BatchHints,
    buckets,
    default_max_batch_size,
    next_multiple,
    normalized,
    padded,
    to_device,
)
from models.backends.folding import folded
from models.hardware import cores
from models.interface.request import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits, Network

# Weights up to this size stay in the last-level cache of current server CPUs.
_LIGHT_WEIGHTS_BYTES = 32 * 2**20
# Activations of more images outgrow what the CPU allocator keeps, and page faults slow down the forward.
_PIECE_OF_ALL_CORES = 16


class Split(NamedTuple):
    """How a batch is cut: pieces of up to `piece` images, `workers` of them at a time on one core each. With one
    worker, pieces run one after another, each on all cores."""

    piece: int
    workers: int


class EagerBackend(Backend):
    """Runs a served copy of the network; the loaded one stays unchanged for the lens.

    On the CPU a batch is cut into pieces (`cpu_split`). For a light network, threads of the backend run the pieces
    concurrently; each of them enters inference_mode, which is thread-local.
    """

    def __init__(self, model: LoadedModel, options: BackendOptions) -> None:
        self._fixed_shape = options.fixed_shape
        self._model = model
        self.network = served_network(model)
        device = model.placement.device
        split = cpu_split(model.weight_bytes) if device.type == "cpu" else None
        max_batch_size = options.max_batch_size or default_size(device, split)
        self._split = split or Split(max_batch_size, workers=1)
        concurrent = self._split.workers > 1
        self.hints = BatchHints(
            max_batch_size=max_batch_size,
            warm_up_sizes=(1, max_batch_size),
            # Workers that are done with the first batch's pieces go on with the second's.
            max_concurrent_batches=2 if concurrent else 1,
            # A batch of one image occupies one worker, and leaves the others free.
            overlap_min_size=1 if concurrent else None,
            intra_op_threads=1 if concurrent else cores.available_cores(),
            memory_note="its forward runs in several threads, and the profiler sees one" if concurrent else None,
        )
        self._workers = ThreadPoolExecutor(
            self._split.workers, "forward", initializer=cores.use_one_core_in_this_thread
        )

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:
        size, count = self._split.piece, len(pixels)
        if self._fixed_shape:
            pixels = padded(pixels, next_multiple(count, size))
        elif self._split.workers > 1:
            # At least as many pieces as workers, if there are enough images, so that no worker idles.
            size = min(size, -(-count // self._split.workers))
        in_order = map if self._split.workers == 1 else self._workers.map
        answers = list(in_order(partial(self._forward, cancel_token), torch.split(pixels, size)))
        if len(answers) == 1:
            return FeaturesAndLogits(*(output[:count] for output in answers[0]))
        return FeaturesAndLogits(*(torch.cat(outputs)[:count] for outputs in zip(*answers, strict=True)))

    def close(self) -> None:
        self._workers.shutdown()

    @torch.inference_mode()
    def _forward(self, cancel_token: CancelToken, pixels: torch.Tensor) -> FeaturesAndLogits:
        cancel_token.raise_if_cancelled()
        answer: FeaturesAndLogits = self.network(normalized(self._model, pixels))
        return answer


def cpu_split(weight_bytes: int) -> Split:
    """Return how PyTorch best runs a batch on the CPU: a light network in small pieces, one a core, because its kernels
    are too short to share out; a heavy one in large pieces on all cores, which read the weights once for many images.
    """
    if weight_bytes <= _LIGHT_WEIGHTS_BYTES:
        return Split(IMAGES_PER_CORE, workers=cores.available_cores())
    return Split(_PIECE_OF_ALL_CORES, workers=1)


def default_size(device: torch.device, split: Split | None) -> int:
    """Return the images of one forward at most, unless the user chooses."""
    return default_max_batch_size(device) if split is None else min(MAX_BATCH_SIZE, split.piece * split.workers)


def served_network(model: LoadedModel) -> Network:
    """Return a copy of the network, folded, in the served precision, channels last in memory."""
    side = model.transform.crop
    network = folded(model.network, torch.rand(2, 3, side, side))
    network = network.to(model.placement.device, model.placement.dtype)
    return network.to(memory_format=torch.channels_last).eval()


class CompiledBackend(Backend):
    """Pads each batch to the next bucket, a power of two or the largest batch. A bucket is compiled at its first run,
    in the warm-up, so that no request compiles."""

    # Any hook on a compiled module would cause another compilation.
    network = None

    def __init__(self, model: LoadedModel, options: BackendOptions) -> None:
        self._model = model
        max_batch_size = options.max_batch_size or default_max_batch_size(model.placement.device)
        self._buckets = (max_batch_size,) if options.fixed_shape else buckets(max_batch_size)
        self.hints = BatchHints(
            max_batch_size=max_batch_size,
            warm_up_sizes=self._buckets,
            intra_op_threads=cores.available_cores(),
        )
        self._network = compiled_network(model)

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:  # noqa: ARG002 - in one piece
        size = len(pixels)
        bucket = next(bucket for bucket in self._buckets if bucket >= size)
        # Graphs are compiled for strides too, and one image can have its strides written in several ways.
        batch = padded(pixels, bucket).contiguous(memory_format=torch.channels_last)
        features, logits = self._network(normalized(self._model, batch))
        return FeaturesAndLogits(features[:size], logits[:size])


def compiled_network(model: LoadedModel) -> Callable[[torch.Tensor], FeaturesAndLogits]:
    """Return the network that EagerBackend serves, compiled for each shape at its first run."""
    # PyTorch suggests TF32 for matrix products, which would change the results of the network.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
    # On the CPU, weights are frozen into the graph.
    options: dict[str, Any] = {"options": {"freezing": True}} if model.placement.device.type == "cpu" else {}
    compiled: Callable[[torch.Tensor], FeaturesAndLogits] = torch.compile(
        served_network(model), dynamic=False, fullgraph=True, **options
    )
    return compiled


class NullBackend(Backend):
    """Runs the catalog's `null` model on one pixel of each image, after the batch was moved to the device."""

    def __init__(self, model: LoadedModel, options: BackendOptions) -> None:
        self.hints = BatchHints(
            max_batch_size=options.max_batch_size or default_max_batch_size(model.placement.device), warm_up_sizes=(1,)
        )
        self._model = model
        self.network = copy.deepcopy(model.network).to(model.placement.dtype)

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:  # noqa: ARG002 - in one piece
        device = self._model.placement.device
        answer: FeaturesAndLogits = self.network(normalized(self._model, to_device(pixels, device)[:, :, :1, :1]))
        return answer
