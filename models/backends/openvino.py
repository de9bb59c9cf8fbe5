"""OpenVINO: the fastest way on CPUs. How it runs; models/backends/openvino_conversion.py is what."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from models.backends.openvino_conversion import converted
from models.backends.shapes import next_multiple, padded
from models.hardware import cores
from models.hardware.placement import Precision
from models.interface.cancellation import NEVER_CANCELLED, CancelToken
from models.interface.errors import DeviceUnavailableError
from models.loading.load import LoadedModel
from models.networks.network import FeaturesAndLogits

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_CAPABILITIES: dict[Precision, str] = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}

# Where all cores run a piece together. Activations of more images leave the caches: EfficientNet-Lite0 runs 156
# images/s in fours and 141 in sixteens on two cores, ResNet-50 the same in both.
_PIECE = 4

# One thread that does all of an image's layers waits for nobody; two that share each layer out wait for one another at
# its end, and lose the more when decoding or HTTP takes a core from one of them. EfficientNet-Lite0, 8 images on two
# cores: 41 ms both ways alone, 57 against 71 ms with a quarter of each core taken; ResNet-50: 439 against 468 ms. An
# image alone is shared out: 6.5 ms against 10.4. The pieces are small, so that the cores end at about the same time.
_PIECE_OF_ONE_CORE = 2


class OpenVinoBackend:
    """Weights stay float32 in the converted model, and the precision is the one it computes in; for int8 there is a
    second model, quantized after training on images of the user's, now or before, into a model folder.

    Of a batch as many images as the cores have equal shares of run side by side, one core each; what is left over,
    as an image alone is, runs on all cores together. Beside another batch nothing is left over, since no core would
    come at once: every piece is a core's. Nor with a fixed shape: every piece is of as many images, some of them blank.
    """

    # OpenVINO has threads of its own.
    intra_op_threads = 1

    network = None
    memory_note = "OpenVINO has memory of its own"

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_batch_size: int,
        cache_folder: Path,
        fixed_shape: bool = False,
        fresh: bool = False,
    ) -> None:
        self._fixed_shape = fixed_shape
        core = _core()
        precision = model.placement.precision
        if _CAPABILITIES[precision] not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise DeviceUnavailableError("cpu", f"OpenVINO does not compute in {precision} on this processor")
        network = converted(core, model, cache_folder, fresh=fresh)
        options = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "INFERENCE_NUM_THREADS": cores.available_cores()}
        self._cores = cores.available_cores()
        streams = (
            _compiled_to_give_way(core, network, options | {"NUM_STREAMS": self._cores})
            if 1 < self._cores <= max_batch_size
            else None
        )
        together = (
            core.compile_model(network, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
            if streams is None or not fixed_shape
            else None
        )
        self._streams = _Requests(streams) if streams is not None else None
        self._together = _Requests(together) if together is not None else None
        # A core comes to the second batch's pieces when it has done its own of the first.
        self.lanes = 1 if streams is None else 2
        self.room_from = None if streams is None else 1 if fixed_shape else self._cores
        self._images = _Count()
        self._outputs = range(len(network.outputs))
        self.sizes_to_warm_up = (1, max_batch_size)

    def run(self, pixels: torch.Tensor, cancel_token: CancelToken = NEVER_CANCELLED) -> FeaturesAndLogits:
        with self._images.more(len(pixels)):
            return self._run(pixels, cancel_token)

    def _run(self, pixels: torch.Tensor, cancel_token: CancelToken) -> FeaturesAndLogits:
        count = len(pixels)
        if self._fixed_shape:
            pixels = padded(pixels, next_multiple(count, _PIECE if self._streams is None else _PIECE_OF_ONE_CORE))
        # Channels last in memory, so the permuted view is contiguous: nothing is copied on the way in.
        batch = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        pieces: list[list[NDArray[np.float32]]] = []
        done = 0
        while done < len(batch) and self._streams is not None:
            shares = self._shares(len(batch) - done, has_company=self._images.now > count)
            if not shares:
                break
            side_by_side = [batch[done:][share] for share in shares]
            pieces += self._infer_side_by_side(self._streams.first(len(shares)), side_by_side, cancel_token)
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

    def close(self) -> None:
        """Its threads are OpenVINO's, and end with it."""

    def _shares(self, images: int, *, has_company: bool) -> list[slice]:
        """Of as many of `images` as every core has the same number of, piece by piece; of all with a fixed shape, and
        when another batch `has_company` with this one."""
        if self._fixed_shape or has_company:
            return [slice(start, start + _PIECE_OF_ONE_CORE) for start in range(0, images, _PIECE_OF_ONE_CORE)]
        of_a_core = images // self._cores
        sizes = [min(_PIECE_OF_ONE_CORE, of_a_core - done) for done in range(0, of_a_core, _PIECE_OF_ONE_CORE)]
        ends = list(accumulate(size for size in sizes for _ in range(self._cores)))
        return [slice(start, end) for start, end in pairwise([0, *ends])]

    def _infer_side_by_side(
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
            # Those beside one that fails, and those of whom nobody wants to hear. They end within a layer; until then
            # they read from `pieces`.
            for request in started:
                request.cancel()
            for request in started:
                with suppress(RuntimeError):
                    request.wait()
            raise
        return [self._answer_of(request) for request in requests]

    def _answer_of(self, request: openvino.InferRequest) -> list[NDArray[np.float32]]:
        # Copied: the request writes its next answer into the same memory.
        return [request.get_output_tensor(index).data.copy() for index in self._outputs]


def _compiled_to_give_way(
    core: openvino.Core, network: openvino.Model, options: dict[str, Any]
) -> openvino.CompiledModel:
    """Streams are threads, of the priority of the one that makes them."""
    with ThreadPoolExecutor(1, initializer=cores.give_way_in_this_thread) as maker:
        return maker.submit(core.compile_model, network, "CPU", options).result()


class _Count:
    """Of images under way, by as many threads as there are."""

    def __init__(self) -> None:
        self.now = 0
        self._changing = threading.Lock()

    @contextmanager
    def more(self, count: int) -> Iterator[None]:
        """Until the block ends."""
        with self._changing:
            self.now += count
        try:
            yield
        finally:
            with self._changing:
                self.now -= count


class _Requests(threading.local):
    """Each thread has its own: a request has memory for one piece's answer."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._compiled = compiled
        self._made: list[openvino.InferRequest] = []

    def first(self, count: int) -> list[openvino.InferRequest]:
        """As many as were ever wanted at once are kept."""
        while len(self._made) < count:
            self._made.append(self._compiled.create_infer_request())
        return self._made[:count]


@cache
def _core() -> openvino.Core:
    """The only one of this process, kept for good. OpenVINO's CPU plugin gives the thread that makes a Core another
    stack for signal handlers and frees it with the Core: were that freed by another thread, as that of a model that is
    unloaded is, the next signal would end the process (seen with 2026.4.1)."""
    core = openvino.Core()
    # The plugin is loaded when it is first asked.
    core.get_property("CPU", "FULL_DEVICE_NAME")
    return core
