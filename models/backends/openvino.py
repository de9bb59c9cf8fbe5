"""OpenVINO: the fastest way on CPUs. The exported network, normalisation inside, converted once and kept on disk."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from torch import nn

from models import devices
from models.backends.shapes import next_multiple, padded
from models.calibration import Calibration
from models.devices import Precision
from models.errors import DeviceUnavailableError, ModelFolderError
from models.loading import LoadedModel, fingerprint
from models.network import FeaturesAndLogits

_log = logging.getLogger(__name__)

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_CAPABILITIES: dict[Precision, str] = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}

# Where a quantized network that is kept says what it was made from.
_SOURCE = ("gradless", "source")

# Where all cores run a piece together. Activations of more images leave the caches: EfficientNet-Lite0 runs 156
# images/s in fours and 141 in sixteens on two cores, ResNet-50 the same in both.
_PIECE = 4

# One thread that does all of an image's layers waits for nobody; two that share each layer out wait for one another at
# its end, and lose the more when decoding or HTTP takes a core from one of them. EfficientNet-Lite0, 8 images on two
# cores: 41 ms both ways alone, 57 against 71 ms with a quarter of each core taken; ResNet-50: 439 against 468 ms. An
# image alone is shared out: 6.5 ms against 10.4. The pieces are small, so that the cores end at about the same time.
_PIECE_OF_ONE_CORE = 2

# Above any batch that is served; torch.export wants a bound to prove shapes with.
_MAX_BATCH = 1024


class OpenVinoBackend:
    """Weights stay float32 in the converted model, and the precision is the one it computes in; for int8 there is a
    second model, quantized after training on images of the user's, now or before, into a model folder.

    Of a batch as many images as the cores have equal shares of run side by side, one core each; what is left over,
    as an image alone is, runs on all cores together. With a fixed shape everything does.
    """

    # OpenVINO has threads of its own.
    intra_op_threads = 1

    network = None
    memory_note = "OpenVINO has memory of its own"

    def __init__(
        self, model: LoadedModel, *, max_batch_size: int, cache_folder: Path, fixed_shape: bool = False
    ) -> None:
        self._fixed_shape = fixed_shape
        core = _core()
        precision = model.placement.precision
        if _CAPABILITIES[precision] not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise DeviceUnavailableError("cpu", f"OpenVINO does not compute in {precision} on this processor")
        converted = _converted(core, model, cache_folder)
        options = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "INFERENCE_NUM_THREADS": devices.available_cores()}
        together = core.compile_model(converted, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
        self._together = together.create_infer_request()
        self._cores = devices.available_cores()
        self._side_by_side: list[openvino.InferRequest] = []
        self._streams = (
            core.compile_model(converted, "CPU", options | {"NUM_STREAMS": self._cores})
            if 1 < self._cores <= max_batch_size and not fixed_shape
            else None
        )
        self._outputs = range(len(together.outputs))
        self.sizes_to_warm_up = (1, max_batch_size)

    def run(self, pixels: torch.Tensor) -> FeaturesAndLogits:
        # Channels last in memory, so the permuted view is contiguous: nothing is copied on the way in.
        wanted = len(pixels)
        if self._fixed_shape:
            pixels = padded(pixels, next_multiple(wanted, _PIECE))
        batch = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        shares = self._shares(len(batch)) if self._streams else []
        shared = shares[-1].stop if shares else 0
        pieces = self._infer_side_by_side([batch[share] for share in shares])
        pieces += [self._infer_together(batch[start : start + _PIECE]) for start in range(shared, len(batch), _PIECE)]
        joined = (np.concatenate(outputs)[:wanted] for outputs in zip(*pieces, strict=True))
        features, *logits = map(torch.from_numpy, joined)
        return FeaturesAndLogits(features, logits[0] if logits else features.new_empty((wanted, 0)))

    def close(self) -> None:
        """Its threads are OpenVINO's, and end with it."""

    def _shares(self, images: int) -> list[slice]:
        """Of as many of `images` as every core has the same number of, piece by piece."""
        of_a_core = images // self._cores
        sizes = [min(_PIECE_OF_ONE_CORE, of_a_core - done) for done in range(0, of_a_core, _PIECE_OF_ONE_CORE)]
        ends = list(accumulate(size for size in sizes for _ in range(self._cores)))
        return [slice(start, end) for start, end in pairwise([0, *ends])]

    def _infer_together(self, piece: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        self._together.infer([piece], share_inputs=True)
        return self._answer_of(self._together)

    def _infer_side_by_side(self, pieces: list[NDArray[np.uint8]]) -> list[list[NDArray[np.float32]]]:
        while self._streams and len(self._side_by_side) < len(pieces):
            self._side_by_side.append(self._streams.create_infer_request())
        requests = self._side_by_side[: len(pieces)]
        # Left only when all have ended, also those beside one that fails.
        with ExitStack() as running:
            for request, piece in zip(requests, pieces, strict=True):
                request.start_async([piece], share_inputs=True)
                running.callback(request.wait)
        return [self._answer_of(request) for request in requests]

    def _answer_of(self, request: openvino.InferRequest) -> list[NDArray[np.float32]]:
        # Copied: the request writes its next answer into the same memory.
        return [request.get_output_tensor(index).data.copy() for index in self._outputs]


@cache
def _core() -> openvino.Core:
    """The only one of this process, kept for good. OpenVINO's CPU plugin gives the thread that makes a Core another
    stack for signal handlers and frees it with the Core: were that freed by another thread, as that of a model that is
    unloaded is, the next signal would end the process (seen with 2026.4.1)."""
    core = openvino.Core()
    # The plugin is loaded when it is first asked.
    core.get_property("CPU", "FULL_DEVICE_NAME")
    return core


class _FromPixels(nn.Module):
    """(N, side, side, 3) uint8 to (features, logits), or features alone where there are no classes: what is
    exported."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.normalize = model.normalize
        self.network = model.network

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer: FeaturesAndLogits = self.network(self.normalize(pixels.permute(0, 3, 1, 2)))
        return answer if self.network.classes else (answer.features,)


def quantize(model: LoadedModel, calibration: Calibration, file: Path) -> None:
    """Write `model` in int8, ranges taken from `calibration`, to `file`, a .xml, and its weights beside it: what a
    model folder says as quantized. Raises StartError when no image can be read, and OSError."""
    made = _quantized(_convert(model), calibration.batches(model.transform))
    made.set_rt_info(_source(model), list(_SOURCE))
    _keep(made, file)


def _own(core: openvino.Core, model: LoadedModel, file: Path) -> openvino.Model:
    """The network that the model folder has quantized."""
    try:
        found = core.read_model(file)
        source = found.get_rt_info(list(_SOURCE)).astype(str)
    except RuntimeError as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ModelFolderError(file, f"is no network that `gradless optimize` has written: {first_line}") from error
    if source != _source(model):
        raise ModelFolderError(
            file, "was made from other weights or another transform than the folder has; make it with them anew"
        )
    return found


def _source(model: LoadedModel) -> str:
    """Of what a quantized network is made from, wherever that lies."""
    return fingerprint("", model.network, model.transform, model.features, precision="fp32", backend="openvino")


def _converted(core: openvino.Core, model: LoadedModel, cache_folder: Path) -> openvino.Model:
    if model.quantized is not None:
        return _own(core, model, model.quantized)
    key = _key(model)

    def unquantized() -> openvino.Model:
        return _kept(core, model, cache_folder / f"openvino-{key}.xml", lambda: _convert(model))

    calibration = model.calibration
    if calibration is None:
        return unquantized()
    path = cache_folder / f"openvino-{key}-int8-{calibration.digest}-nncf-{version('nncf')}.xml"
    return _kept(core, model, path, lambda: _quantized(unquantized(), calibration.batches(model.transform)))


def _kept(core: openvino.Core, model: LoadedModel, path: Path, make: Callable[[], openvino.Model]) -> openvino.Model:
    """What `make` makes, made once and kept at `path`."""
    if path.exists():
        try:
            return core.read_model(path)
        except RuntimeError as error:
            _log.warning("%s cannot be read and is made anew: %s", path, error)
    converted = make()
    try:
        _keep(converted, path)
    except OSError as error:
        _log.warning("the converted %s is not kept, so the next start converts again: %s", model.name, error)
    return converted


def _key(model: LoadedModel) -> str:
    """Of everything that the converted model depends on: one precision serves them all."""
    weights = fingerprint(
        model.architecture, model.network, model.transform, model.features, precision="fp32", backend="openvino"
    )
    versions = [version(package) for package in ("openvino", "torch", "torchvision", "timm")]
    return hashlib.sha256(repr((weights, versions)).encode()).hexdigest()[:16]


def _convert(model: LoadedModel) -> openvino.Model:
    side = model.transform.crop
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    with torch.no_grad():
        exported = torch.export.export(_FromPixels(model).eval(), (example,), dynamic_shapes=({0: batch},))
    return openvino.convert_model(exported)


def _quantized(converted: openvino.Model, batches: list[NDArray[np.uint8]]) -> openvino.Model:
    """Weights and activations of convolutions and linear layers in 8 bits, ranges taken from `batches`."""
    # It takes seconds to import, and only the first start with int8 needs it.
    import nncf  # noqa: PLC0415

    logging.getLogger("nncf").setLevel(logging.WARNING)
    # Its preset for networks whose activations go below zero, as those of today's do.
    return nncf.quantize(
        converted, nncf.Dataset(batches), preset=nncf.QuantizationPreset.MIXED, subset_size=len(batches)
    )


def _keep(converted: openvino.Model, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        openvino.save_model(converted, unfinished, compress_to_fp16=False)
        # The weights first: a reader that finds the description finds them too.
        for suffix in (".bin", ".xml"):
            unfinished.with_suffix(suffix).replace(path.with_suffix(suffix))
