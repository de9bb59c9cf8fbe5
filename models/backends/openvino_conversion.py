"""Convert an exported network for OpenVINO: quantize it for int8, and keep it on disk.

An entry of the cache is a folder that is moved into place by one rename, so that concurrent processes do not mix their
files, and that is verified by digests when it is read:

    openvino-KEY/network.xml, network.bin, digests.json

If the cache cannot be used, the network is converted again and the reason is logged; the start never fails.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from time import time

import numpy as np
import openvino
import rich
from numpy.typing import NDArray

from models.backends.backend import exported
from models.interface.errors import ModelFolderError
from models.interface.model_sources import expand_home
from models.loading.calibration import Calibration
from models.loading.load import LoadedModel, fingerprint

_log = logging.getLogger(__name__)

# Key of OpenVINO's metadata that says what a quantized network was made from.
_SOURCE = ("gradless", "source")

_NETWORK = "network.xml"
_WEIGHTS = "network.bin"
_DIGESTS = "digests.json"

# Prefix of folders that are not yet moved into place.
_UNFINISHED = "unfinished-"
# Age after which a leftover of a killed process is removed. No conversion takes as long to write.
_LEFTOVER_S = 24 * 3600


def converted(core: openvino.Core, model: LoadedModel, cache_folder: Path, *, fresh: bool = False) -> openvino.Model:
    """Return the converted network. It maps (N, side, side, 3) uint8 to features (N, D) and, if there are classes,
    logits (N, C), both float32. It is int8 if the model is calibrated or has a quantized network in its folder.
    `fresh`: ignore the cache. Raises StartError."""
    if model.quantized is not None:
        return _of_folder(core, model, model.quantized)
    cache = ConversionCache(core, expand_home(cache_folder))
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


def quantize(model: LoadedModel, calibration: Calibration, file: Path) -> None:
    """Quantize `model` to int8 with the ranges of `calibration`, and write it to `file`, a .xml, and its weights to the
    .bin file of the same name, for a model folder. Raises StartError if no image can be read, and OSError."""
    made = _quantized(_convert(model), calibration.batches(model.transform))
    made.set_rt_info(_source(model), list(_SOURCE))
    _save(made, file)


class ConversionCache:
    """The entries of a folder, which need not exist. Several processes may use it at the same time."""

    def __init__(self, core: openvino.Core, folder: Path) -> None:
        self._core = core
        self._folder = folder

    def read(self, name: str) -> openvino.Model | None:
        """Return the network of that name. None if there is none, or if it is damaged, which is logged."""
        try:
            entry = self._folder / name
            if not entry.exists():
                return None
            if json.loads((entry / _DIGESTS).read_bytes()) != _digests(entry):
                raise ValueError("its files have changed since they were written")  # noqa: TRY301
            return self._core.read_model(entry / _NETWORK)
        # RuntimeError comes from OpenVINO.
        except (OSError, ValueError, RuntimeError) as error:
            _log.warning("%s in %s cannot be used, so it is converted again: %s", name, self._folder, _line(error))
            return None

    def keep(self, network: openvino.Model, name: str) -> None:
        """Write `network` under `name`, and replace an earlier entry. A failure is logged."""
        try:
            self._write(network, self._folder / name)
        except (OSError, RuntimeError) as error:
            _log.warning(
                "%s cannot be kept in %s, so the next start converts it again: %s", name, self._folder, _line(error)
            )

    def _write(self, network: openvino.Model, entry: Path) -> None:
        folder = entry.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.glob(f"{_UNFINISHED}*"):
            with suppress(OSError):
                if path.stat().st_mtime < time() - _LEFTOVER_S:
                    shutil.rmtree(path)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder, ignore_cleanup_errors=True) as temporary:
            unfinished = Path(temporary) / entry.name
            unfinished.mkdir()
            _save(network, unfinished / _NETWORK)
            # Read it back: on a full disk OpenVINO may write part of a file without an error.
            self._core.read_model(unfinished / _NETWORK)
            (unfinished / _DIGESTS).write_text(json.dumps(_digests(unfinished)), encoding="utf-8")
            # A folder cannot be renamed over another. The existing one is damaged, or another process has written it.
            with suppress(FileNotFoundError):
                entry.rename(Path(temporary) / "replaced")
            try:
                unfinished.rename(entry)
            except OSError as error:
                # Another process was faster, and its network is the same.
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise


def _of_folder(core: openvino.Core, model: LoadedModel, file: Path) -> openvino.Model:
    """Return the quantized network of the model folder."""
    try:
        found = core.read_model(file)
        source = found.get_rt_info(list(_SOURCE)).astype(str)
    except RuntimeError as error:
        raise ModelFolderError(file, f"is no network that `gradless optimize` has written: {_line(error)}") from error
    if source != _source(model):
        raise ModelFolderError(
            file, "was made from other weights or another transform than the folder has; quantize the model again"
        )
    return found


def _source(model: LoadedModel, architecture: str = "") -> str:
    """Return a fingerprint of what a network is converted from, wherever its folder is."""
    return fingerprint(
        architecture, model.network, model.transform, model.features, precision="fp32", backend="openvino"
    )


def _key(model: LoadedModel) -> str:
    """Return a digest of everything that the converted model depends on. All precisions share one conversion."""
    versions = [version(package) for package in ("openvino", "torch", "torchvision", "timm")]
    return hashlib.sha256(repr((_source(model, model.architecture), versions)).encode()).hexdigest()[:16]


def _convert(model: LoadedModel) -> openvino.Model:
    return openvino.convert_model(exported(model))


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


def _save(network: openvino.Model, file: Path) -> None:
    """Write `network` to `file`, a .xml, and its weights to the .bin file of the same name. Raises OSError."""
    try:
        openvino.save_model(network, file, compress_to_fp16=False)
    except RuntimeError as error:
        # OpenVINO gives no reason; most often the disk is full.
        free_mb = shutil.disk_usage(file.parent).free / 1e6
        raise OSError(f"OpenVINO cannot write {file}, {free_mb:.0f} MB are free: {_line(error)}") from error


def _digests(entry: Path) -> dict[str, str]:
    """Return the digest of each file, and the name of the entry, which detects an entry copied over another."""
    digests = {"entry": entry.name}
    for name in (_NETWORK, _WEIGHTS):
        with (entry / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _line(error: Exception) -> str:
    """Return the last line of the message. The first line of OpenVINO's messages is a position in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
