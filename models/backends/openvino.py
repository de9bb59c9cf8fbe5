"""OpenVINO, the fastest backend on CPUs: how it runs a network. openvino_conversion.py converts the network."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from models.backends.backend import Backend, BackendOptions, BatchHints, default_max_batch_size, next_multiple, padded
from models.backends.openvino_conversion import converted
from models.hardware import cores
from models.interface.errors import DeviceUnavailableError
from models.interface.model_sources import Precision
from models.interface.request import NEVER_CANCELLED, CancelToken
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_CAPABILITIES: dict[Precision, str] = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}

# Images of a piece that all cores run together: 156 images/s, and 141 with pieces of 16, whose activations leave the
# caches (EfficientNet-Lite0, two cores).
_PIECE = 4

# Images of a piece that one core runs alone. Small pieces let all cores end at about the same time. Cores that share a
# layer wait for the slowest: 8 images take 71 ms so, and 57 ms in pieces, with a quarter of each core taken by decodes.
_PIECE_OF_ONE_CORE = 2


class OpenVinoBackend(Backend):
    """Runs a converted model, whose weights stay float32, in the precision of the placement. For int8 the model is
    quantized after training, by calibration at the start or earlier into a model folder.

    Each core runs an equal share of the images of a batch. The remainder, or a single image, runs on all cores
    together. There is no remainder while another batch runs, because no core is free at once, nor with a fixed shape:
    then every piece has the same number of images, some of them blank.
    """

    network = None

    def __init__(self, model: LoadedModel, options: BackendOptions) -> None:
        max_batch_size = options.max_batch_size or default_max_batch_size(model.placement.device)
        self._fixed_shape = options.fixed_shape
        core = _core()
        precision = model.placement.precision
        if _CAPABILITIES[precision] not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            reason = f"OpenVINO does not compute in {precision} on this processor; use fp32 or the eager backend"
            raise DeviceUnavailableError("cpu", reason)
        network = converted(core, model, options.cache_folder, fresh=options.fresh)
        properties = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "INFERENCE_NUM_THREADS": cores.available_cores()}
        self._cores = cores.available_cores()
        streams = (
            _compiled_at_low_priority(core, network, properties | {"NUM_STREAMS": self._cores})
            if 1 < self._cores <= max_batch_size
            else None
        )
        together = (
            core.compile_model(network, "CPU", properties | {"PERFORMANCE_HINT": "LATENCY"})
            if streams is None or not options.fixed_shape
            else None
        )
        self._streams = _Requests(streams) if streams is not None else None
        self._together = _Requests(together) if together is not None else None
        # Images in flight, of all threads.
        self._images = 0
        self._counting = threading.Lock()
        self._outputs = range(len(network.outputs))
        smallest_per_core = 1 if options.fixed_shape else self._cores
        self.hints = BatchHints(
            max_batch_size=max_batch_size,
            warm_up_sizes=(1, max_batch_size),
            # A core that is done with its pieces of the first batch goes on with pieces of the second.
            max_concurrent_batches=1 if streams is None else 2,
            overlap_min_size=None if streams is None else smallest_per_core,
            memory_note="OpenVINO has memory of its own",
            retained_note="its forward runs outside PyTorch",
        )

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:
        with self._counting:
            self._images += len(pixels)
        try:
            return self._run(pixels, cancel_token)
        finally:
            with self._counting:
                self._images -= len(pixels)

    def _run(self, pixels: torch.Tensor, cancel_token: CancelToken) -> FeaturesAndLogits:
        count = len(pixels)
        if self._fixed_shape:
            pixels = padded(pixels, next_multiple(count, _PIECE if self._streams is None else _PIECE_OF_ONE_CORE))
        # The permuted view is contiguous, because `pixels` is channels last in memory: no copy.
        batch = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        pieces: list[list[NDArray[np.float32]]] = []
        done = 0
        while done < len(batch) and self._streams is not None:
            shares = self._shares(len(batch) - done, alongside_others=self._images > count)
            if not shares:
                break
            on_cores = [batch[done:][share] for share in shares]
            pieces += self._infer_concurrently(self._streams.first(len(shares)), on_cores, cancel_token)
            done += shares[-1].stop
        if done < len(batch) and self._together is not None:
            [request] = self._together.first(1)
            for start in range(done, len(batch), _PIECE):
                cancel_token.raise_if_cancelled()
                request.infer([batch[start : start + _PIECE]], share_inputs=True)
                pieces.append(self._answer_of(request))
        joined = (np.concatenate(outputs)[:count] for outputs in zip(*pieces, strict=True))
        features, *logits = map(torch.from_numpy, joined)
        return FeaturesAndLogits(features, logits[0] if logits else features.new_empty((count, 0)))

    def _shares(self, images: int, *, alongside_others: bool) -> list[slice]:
        """Return pieces of the images that divide equally among the cores. With a fixed shape, or while other batches
        run, return pieces of all `images`."""
        if self._fixed_shape or alongside_others:
            return [slice(start, start + _PIECE_OF_ONE_CORE) for start in range(0, images, _PIECE_OF_ONE_CORE)]
        per_core = images // self._cores
        sizes = [min(_PIECE_OF_ONE_CORE, per_core - done) for done in range(0, per_core, _PIECE_OF_ONE_CORE)]
        ends = list(accumulate(size for size in sizes for _ in range(self._cores)))
        return [slice(start, end) for start, end in pairwise([0, *ends])]

    def _infer_concurrently(
        self, requests: list[openvino.InferRequest], pieces: list[NDArray[np.uint8]], cancel_token: CancelToken
    ) -> list[list[NDArray[np.float32]]]:
        started: list[openvino.InferRequest] = []
        try:
            for request, piece in zip(requests, pieces, strict=True):
                request.start_async([piece], share_inputs=True)
                started.append(request)
            for request in started:
                cancel_token.raise_if_cancelled()
                request.wait()
        except BaseException:
            # Cancelled requests end within a layer, and read from `pieces` until then.
            for request in started:
                request.cancel()
            for request in started:
                with suppress(RuntimeError):
                    request.wait()
            raise
        return [self._answer_of(request) for request in requests]

    def _answer_of(self, request: openvino.InferRequest) -> list[NDArray[np.float32]]:
        # Copied, because the request writes its next output into the same memory.
        return [request.get_output_tensor(index).data.copy() for index in self._outputs]


def _compiled_at_low_priority(
    core: openvino.Core, network: openvino.Model, options: dict[str, Any]
) -> openvino.CompiledModel:
    """Compile in a thread of low priority: the threads of OpenVINO's streams inherit it."""
    with ThreadPoolExecutor(1, initializer=cores.lower_priority_in_this_thread) as creator:
        return creator.submit(core.compile_model, network, "CPU", options).result()


class _Requests(threading.local):
    """Inference requests of the current thread. A request holds the memory of one piece's output."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._compiled = compiled
        self._made: list[openvino.InferRequest] = []

    def first(self, count: int) -> list[openvino.InferRequest]:
        """Return `count` requests, created on first use."""
        while len(self._made) < count:
            self._made.append(self._compiled.create_infer_request())
        return self._made[:count]


@cache
def _core() -> openvino.Core:
    """Return the only Core of this process, which is never freed.

    OpenVINO's CPU plugin gives the thread that creates a Core another stack for signal handlers, and frees the stack
    with the Core. If another thread freed it, the next signal would end the process (OpenVINO 2026.4.1).
    """
    core = openvino.Core()
    # The first property read loads the plugin.
    core.get_property("CPU", "FULL_DEVICE_NAME")
    return core
