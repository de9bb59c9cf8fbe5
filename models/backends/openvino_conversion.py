"""Convert a network for OpenVINO: export it with its normalization, cache it on disk, and quantize it for int8."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
import rich
import torch
from numpy.typing import NDArray
from torch import nn

from models.backends.conversion_cache import ConversionCache, save
from models.interface.errors import ModelFolderError
from models.loading.calibration import Calibration
from models.loading.load import LoadedModel, fingerprint
from models.networks.network import FeaturesAndLogits

# Key of OpenVINO's metadata that says what a quantized network was made from.
_SOURCE = ("gradless", "source")

# Above any batch that is served; torch.export needs a bound for its shape constraints.
_MAX_BATCH = 1024


class _FromPixels(nn.Module):
    """The module that is exported: maps (N, side, side, 3) uint8 to (features, logits), or to features alone if there
    are no classes."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.normalize = model.normalize
        self.network = model.network

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer: FeaturesAndLogits = self.network(self.normalize(pixels.permute(0, 3, 1, 2)))
        return answer if self.network.classes else (answer.features,)


def quantize(model: LoadedModel, calibration: Calibration, file: Path) -> None:
    """Quantize `model` to int8 with the ranges of `calibration`, and write it to `file`, a .xml, and its weights to the
    .bin file of the same name, for a model folder. Raises StartError if no image can be read, and OSError."""
    made = _quantized(_convert(model), calibration.batches(model.transform))
    made.set_rt_info(_source(model), list(_SOURCE))
    save(made, file)


def _of_folder(core: openvino.Core, model: LoadedModel, file: Path) -> openvino.Model:
    """Return the quantized network of the model folder."""
    try:
        found = core.read_model(file)
        source = found.get_rt_info(list(_SOURCE)).astype(str)
    except RuntimeError as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ModelFolderError(file, f"is no network that `gradless optimize` has written: {first_line}") from error
    if source != _source(model):
        raise ModelFolderError(
            file, "was made from other weights or another transform than the folder has; quantize the model again"
        )
    return found


def _source(model: LoadedModel) -> str:
    """Return a fingerprint of what a quantized network is made from, wherever the folder is."""
    return fingerprint("", model.network, model.transform, model.features, precision="fp32", backend="openvino")


def converted(core: openvino.Core, model: LoadedModel, cache_folder: Path, *, fresh: bool = False) -> openvino.Model:
    """Return the converted network. It maps (N, side, side, 3) uint8 to features (N, D) and, if there are classes,
    logits (N, C), both float32. It is int8 if the model is calibrated or has a quantized network in its folder.
    `fresh`: ignore the cache. Raises StartError."""
    if model.quantized is not None:
        return _of_folder(core, model, model.quantized)
    cache = ConversionCache(core, cache_folder)
    name = f"openvino-{_key(model)}"

    def kept(name: str, make: Callable[[], openvino.Model]) -> openvino.Model:
        found = None if fresh else cache.read(name)
        if found is None:
            found = make()
            cache.keep(found, name)
        return found

    def unquantized() -> openvino.Model:
        return kept(name, lambda: _convert(model))

    calibration = model.calibration
    if calibration is None:
        return unquantized()
    return kept(
        f"{name}-int8-{calibration.digest}-nncf-{version('nncf')}",
        lambda: _quantized(unquantized(), calibration.batches(model.transform)),
    )


def _key(model: LoadedModel) -> str:
    """Return a digest of everything that the converted model depends on. All precisions share one conversion."""
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


def _quantized(network: openvino.Model, batches: list[NDArray[np.uint8]]) -> openvino.Model:
    """Quantize weights and activations of convolutions and linear layers to 8 bits, with the ranges of `batches`."""
    # Takes seconds to import, and only the first start with int8 needs it.
    import nncf  # noqa: PLC0415

    logging.getLogger("nncf").setLevel(logging.WARNING)
    # NNCF's preset for networks with negative activations, which current ones have.
    preset = nncf.QuantizationPreset.MIXED
    with _without_progress_bars():
        return nncf.quantize(network, nncf.Dataset(batches), preset=preset, subset_size=len(batches))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Silence rich's global console, where NNCF draws progress bars: stdout is for the output of a command."""
    console = rich.get_console()
    quiet, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = quiet
