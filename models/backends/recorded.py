"""CUDA: the kernels of a forward are recorded once for each of a few batch sizes, and launched by one call thereafter.

Launched one by one they are a hundred and more, and with each PyTorch lets the GIL go and asks for it back, from an
event loop that is busy; the device waits for that.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

import torch

from models.backends.compiled import compiled_network
from models.backends.eager import served_network
from models.backends.shapes import buckets, padded
from models.hardware import cuda, memory
from models.hardware.cuda import BatchThreadStreams
from models.interface.cancellation import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits

_log = logging.getLogger(__name__)

Forward = Callable[[torch.Tensor], FeaturesAndLogits]

# Before a recording: libraries make their handles and choose their kernels, and torch.compile compiles.
_FORWARDS_BEFORE = 3

# Models that are loaded at the same time record in the same streams.
_one_at_a_time = threading.Lock()


class RecordedBackend:
    """Runs the network of `eager` or of `compiled` on a CUDA device. Batches go by the next bucket, a power of two or
    the largest batch; what is computed for its empty places is left out.

    A network that cannot be recorded, because it waits for the device in its middle or the memory for it is not there,
    is launched kernel by kernel.
    """

    # Nothing calls the module again: hooks would hear nothing.
    network = None
    lanes = 2
    room_from = None
    intra_op_threads = 1

    def __init__(self, model: LoadedModel, *, max_batch_size: int, fixed_shape: bool = False) -> None:
        self._device = model.placement.device
        self._dtype = model.placement.dtype
        self._normalize = model.normalize
        self._network = compiled_network(model) if model.placement.backend == "compiled" else served_network(model)
        self._fixed_shape = fixed_shape
        self.sizes_to_warm_up = (max_batch_size,) if fixed_shape else buckets(max_batch_size)
        self._takes: SimpleQueue[_Take] = SimpleQueue()
        self._recorded = self._record(model.transform.crop)

    @property
    def memory_note(self) -> str | None:
        """Why PyTorch cannot tell how much memory `run` takes; None where it can."""
        return "its kernels were recorded together with the memory that they work in" if self._recorded else None

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:  # noqa: ARG002 - in one piece
        size = len(pixels)
        bucket = next(bucket for bucket in self.sizes_to_warm_up if bucket >= size)
        if not self._recorded:
            batch = padded(pixels, bucket) if self._fixed_shape else pixels
            return FeaturesAndLogits(*(output[:size] for output in self._forward(cuda.to_device(batch, self._device))))
        # As many as lanes, so nobody waits here but for the lens, and it is alone.
        take = self._takes.get()
        try:
            return take.run(pixels, bucket)
        finally:
            self._takes.put(take)

    def close(self) -> None:
        """It has no threads of its own."""

    def _forward(self, pixels: torch.Tensor) -> FeaturesAndLogits:
        answer: FeaturesAndLogits = self._network(self._normalize(pixels).to(self._dtype))
        return answer

    def _record(self, side: int) -> bool:
        try:
            with torch.inference_mode():
                takes = [
                    _Take(self._forward, self.sizes_to_warm_up, side, cuda.batch_thread_streams(self._device, lane))
                    for lane in range(self.lanes)
                ]
        except Exception as error:  # noqa: BLE001 - what is wrong without a recording too, the warm-up will say
            _log.warning("kernels are launched one by one, since they could not be recorded: %s", error)
        else:
            for take in takes:
                self._takes.put(take)
            return True
        # Outside the handler: the error's frames hold what was recorded so far.
        gc.collect()
        memory.give_back(self._device)
        return False


class _Recording(NamedTuple):
    """A graph, and the memory in which it finds its input and leaves its outputs."""

    graph: torch.cuda.CUDAGraph
    pixels: torch.Tensor
    outputs: FeaturesAndLogits


class _Take:
    """Recordings of one forward at several sizes, which share their memory, and run one after another."""

    def __init__(self, forward: Forward, sizes: Sequence[int], side: int, streams: BatchThreadStreams) -> None:
        self._streams = streams
        self._recordings: dict[int, _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()
        # The largest first: the others find room in its memory.
        for size in sorted(sizes, reverse=True):
            shape = (size, side, side, 3)
            blank = torch.zeros(shape, dtype=torch.uint8, device=streams.run.device).permute(0, 3, 1, 2)
            self._recordings[size] = self._recorded(forward, blank)

    def run(self, pixels: torch.Tensor, size: int) -> FeaturesAndLogits:
        """The forward of up to `size` images; the outputs are the caller's, who may use them in its own stream."""
        recording, count = self._recordings[size], len(pixels)
        callers = torch.cuda.current_stream(self._streams.run.device)
        with torch.cuda.stream(self._streams.run):
            recording.pixels[:count].copy_(pixels, non_blocking=True)
            recording.graph.replay()
            outputs = FeaturesAndLogits(*(output[:count].clone() for output in recording.outputs))
        callers.wait_stream(self._streams.run)
        for output in outputs:
            # Or its memory would be given away when it is let go, whatever the caller's stream has still to do.
            output.record_stream(callers)
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
        # What is in `pixels` so far was written in another stream than it will be.
        self._streams.run.wait_stream(stream)
        return _Recording(graph, pixels, outputs)
