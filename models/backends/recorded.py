"""CUDA: record the kernels of a forward once for each of a few batch sizes, then launch them by one call.

A forward launches a hundred kernels and more. PyTorch releases the GIL for each launch and has to get it back from a
busy event loop, while the device waits.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Sequence
from functools import cache
from queue import SimpleQueue
from typing import NamedTuple

import torch

from models.backends.backend import (
    Backend,
    BackendOptions,
    BatchHints,
    buckets,
    default_max_batch_size,
    padded,
    to_device,
)
from models.backends.pytorch import compiled_network, served_network
from models.hardware import memory
from models.interface.request import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits

_log = logging.getLogger(__name__)

Forward = Callable[[torch.Tensor], FeaturesAndLogits]

# Forwards before a recording, in which libraries create handles and choose kernels, and torch.compile compiles.
_FORWARDS_BEFORE = 3

# All models of the process record in the same streams.
_one_at_a_time = threading.Lock()


# Batches in flight, each with recordings of its own: the second starts as soon as the device has done the first.
_IN_FLIGHT = 2


class RecordedBackend(Backend):
    """Runs the network of `eager` or of `compiled` on a CUDA device. A batch is padded to the next bucket, a power of
    two or the largest batch, and the results of the padding are dropped.

    A network is launched kernel by kernel if it cannot be recorded, because it synchronizes with the device in the
    middle or because there is not enough memory.
    """

    # A replay does not call the module, so hooks on it would not run.
    network = None

    def __init__(self, model: LoadedModel, options: BackendOptions) -> None:
        self._device = model.placement.device
        self._dtype = model.placement.dtype
        self._normalize = model.normalize
        self._network = compiled_network(model) if model.placement.backend == "compiled" else served_network(model)
        self._fixed_shape = options.fixed_shape
        max_batch_size = options.max_batch_size or default_max_batch_size(self._device)
        self._buckets = (max_batch_size,) if options.fixed_shape else buckets(max_batch_size)
        self._recordings: SimpleQueue[_Recordings] = SimpleQueue()
        self._recorded = self._record(model.transform.crop)
        self.hints = BatchHints(
            max_batch_size=max_batch_size,
            warm_up_sizes=self._buckets,
            max_concurrent_batches=_IN_FLIGHT,
            memory_note=(
                "its kernels were recorded together with the memory that they work in" if self._recorded else None
            ),
        )

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:  # noqa: ARG002 - in one piece
        size = len(pixels)
        bucket = next(bucket for bucket in self._buckets if bucket >= size)
        if not self._recorded:
            batch = padded(pixels, bucket) if self._fixed_shape else pixels
            return FeaturesAndLogits(*(output[:size] for output in self._forward(to_device(batch, self._device))))
        # There is one for each batch in flight, so this never waits.
        recordings = self._recordings.get()
        try:
            return recordings.run(pixels, bucket)
        finally:
            self._recordings.put(recordings)

    def _forward(self, pixels: torch.Tensor) -> FeaturesAndLogits:
        answer: FeaturesAndLogits = self._network(self._normalize(pixels).to(self._dtype))
        return answer

    def _record(self, side: int) -> bool:
        try:
            with torch.inference_mode():
                recorded = [
                    _Recordings(self._forward, self._buckets, side, _batch_thread_streams(self._device, number))
                    for number in range(_IN_FLIGHT)
                ]
        except Exception as error:  # noqa: BLE001 - the warm-up reports what fails without a recording too
            _log.warning("kernels are launched one by one, because they could not be recorded: %s", error)
        else:
            for each in recorded:
                self._recordings.put(each)
            return True
        # Outside the handler, because the frames of the error hold the unfinished recordings.
        gc.collect()
        memory.trim(self._device)
        return False


class _BatchThreadStreams(NamedTuple):
    """`record`: for one recording at a time, without other work. `run`: for replays of those recordings, one after
    another, because cuBLAS writes the address of its workspace, one for each stream, into a recording."""

    record: torch.cuda.Stream
    run: torch.cuda.Stream


@cache
def _batch_thread_streams(device: torch.device, number: int) -> _BatchThreadStreams:  # noqa: ARG001 - a key of the cache
    """Return the streams of that batch thread, shared by all models of the process: libraries never free their memory
    for a stream, 32 MiB on an H100."""
    record, run = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]  # PyTorch's own
    return _BatchThreadStreams(record, run)


class _Recording(NamedTuple):
    """A graph, and the memory of its input and its outputs."""

    graph: torch.cuda.CUDAGraph
    pixels: torch.Tensor
    outputs: FeaturesAndLogits


class _Recordings:
    """Recordings of one forward at several sizes, which share their memory and run one after another."""

    def __init__(self, forward: Forward, sizes: Sequence[int], side: int, streams: _BatchThreadStreams) -> None:
        self._streams = streams
        self._by_size: dict[int, _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()
        # The largest first, because the others fit into its memory.
        for size in sorted(sizes, reverse=True):
            shape = (size, side, side, 3)
            blank = torch.zeros(shape, dtype=torch.uint8, device=streams.run.device).permute(0, 3, 1, 2)
            self._by_size[size] = self._recorded(forward, blank)

    def run(self, pixels: torch.Tensor, size: int) -> FeaturesAndLogits:
        """Run the forward of up to `size` images. The outputs may be used in the current stream."""
        recording, count = self._by_size[size], len(pixels)
        current = torch.cuda.current_stream(self._streams.run.device)
        with torch.cuda.stream(self._streams.run):
            recording.pixels[:count].copy_(pixels, non_blocking=True)
            recording.graph.replay()
            outputs = FeaturesAndLogits(*(output[:count].clone() for output in recording.outputs))
        current.wait_stream(self._streams.run)
        for output in outputs:
            # Without it, the allocator could reuse the memory before the current stream has read it.
            output.record_stream(current)
        return outputs

    def _recorded(self, forward: Forward, pixels: torch.Tensor) -> _Recording:
        stream = self._streams.record
        with _one_at_a_time:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
            with torch.cuda.stream(stream):
                for _ in range(_FORWARDS_BEFORE):
                    forward(pixels)
            graph = torch.cuda.CUDAGraph()
            # Other models, in other threads, may allocate meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                outputs = forward(pixels)
        # `pixels` was written in another stream than the one that will write it from now on.
        self._streams.run.wait_stream(stream)
        return _Recording(graph, pixels, outputs)
