"""Networks that can be built by name: every classifier of torchvision, and as `timm/NAME` every model of timm."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import timm
import torch
import torchvision
from safetensors import SafetensorError
from timm.data.config import resolve_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg
from timm.models._hub import download_cached_file
from torch import nn

from models.images.preprocessing import Transform
from models.interface.errors import UnknownCatalogNameError, UnsupportedArchitectureError, WeightsUnavailableError
from models.interface.model_sources import Fit
from models.networks.specs import Architecture

TIMM_PREFIX = "timm/"

# timm's names for the handling of images that are not square.
_FITS: dict[str, Fit] = {"center": "crop", "squash": "stretch", "border": "pad"}

_CHANNELS = 3
_WEIGHTS = "model.safetensors"

_UNAVAILABLE = (URLError, OSError, RuntimeError, ValueError, EOFError, KeyError, UnpicklingError, SafetensorError)

# Arguments that torchvision's builders set when they load the weights of these architectures.
_ARGUMENTS: dict[str, dict[str, object]] = {
    "googlenet": {"transform_input": True},
    "inception_v3": {"transform_input": True},
    "vit_h_14": {"image_size": 518},
}

# Architectures whose builders take `init_weights`.
_WITH_INIT_WEIGHTS = frozenset({"googlenet", "inception_v3"})


def names() -> list[str]:
    """Return every name that `find` accepts, torchvision's first, and timm's also with each tag of their weights."""
    return [*torchvision_names(), *_timm_names()]


def exists(name: str) -> bool:
    """Return whether there is an architecture of that name."""
    return _timm_exists(name) if name.startswith(TIMM_PREFIX) else name in torchvision_names()


def find(name: str) -> Architecture:
    """Return the architecture of that name. Raises UnknownCatalogNameError with similar names, and
    UnsupportedArchitectureError if its preprocessing is not supported."""
    if not exists(name):
        raise UnknownCatalogNameError(name, similar(name, names()))
    return _find_timm(name) if name.startswith(TIMM_PREFIX) else _find_torchvision(name)


def similar(name: str, known: list[str]) -> list[str]:
    """Return at most three of the `known` names that are most similar to `name`, the most similar first."""
    close = difflib.get_close_matches(name, known, n=3)
    # timm's model of that name, asked for without the prefix.
    owned = f"{TIMM_PREFIX}{name}"
    return list(dict.fromkeys([owned, *close]))[:3] if owned in known else close


def reason(error: BaseException) -> str:
    """Return the class of an error and the first line of its message, without a full stop."""
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"{error.filename} is not readable by this user"
    first_line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first_line.rstrip('.')}"


@contextmanager
def seeded() -> Iterator[None]:
    """Seed random weights, and restore the random numbers afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def imagenet_labels() -> tuple[str, ...]:
    """Return the 1000 class names of ImageNet-1k in index order, from the metadata of torchvision's weights."""
    return tuple(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def _cached(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _unavailable(name: str, error: Exception, address: str, file: Path) -> WeightsUnavailableError:
    advice = f"On a closed network put {address} at {file}, or serve {name}:random."
    return WeightsUnavailableError(name, reason(error), advice)


def torchvision_names() -> list[str]:
    listed: list[str] = torchvision.models.list_models(module=torchvision.models)
    return listed


def _find_torchvision(name: str) -> Architecture:
    """Return the architecture of that name, one of `torchvision_names()`. Raises UnsupportedArchitectureError."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    return Architecture(
        name,
        _preset(name, weights),
        tuple(weights.meta["categories"]),
        build=lambda classes: _random_torchvision(name, classes),
        published=lambda: _published_torchvision(name, weights),
    )


def _random_torchvision(name: str, classes: int | None) -> nn.Module:
    with seeded():
        return _torchvision_module(name, classes, init_weights=True)


def _torchvision_module(name: str, classes: int | None, *, init_weights: bool) -> nn.Module:
    arguments = dict(_ARGUMENTS.get(name, {}))
    if name in _WITH_INIT_WEIGHTS:
        arguments["init_weights"] = init_weights
    if classes is not None:
        arguments["num_classes"] = classes
    module: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return module


def _published_torchvision(name: str, weights: torchvision.models.WeightsEnum) -> nn.Module:
    try:
        # Not by the builder, which would unpickle any file at that path.
        state = weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
        module = _torchvision_module(name, None, init_weights=False)
        module.load_state_dict(state)
    except (URLError, OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise _unavailable(name, error, weights.url, _cached(Path(weights.url).name)) from error
    return module


def _preset(name: str, weights: torchvision.models.WeightsEnum) -> Transform:
    preset = weights.transforms()
    interpolation, (resize,), (crop,) = preset.interpolation.value, preset.resize_size, preset.crop_size
    if interpolation not in {"bilinear", "bicubic"}:
        raise UnsupportedArchitectureError(name, f"its transform resizes by {interpolation}")
    return Transform(resize, crop, interpolation, tuple(preset.mean), tuple(preset.std))


def _timm_names() -> list[str]:
    return [f"{TIMM_PREFIX}{name}" for name in (*timm.list_models(), *timm.list_models(pretrained=True))]


def _timm_exists(name: str) -> bool:
    """Return whether timm has that model; `name` begins with the prefix."""
    try:
        return timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX), allow_unregistered=False) is not None
    except RuntimeError:
        return False


def _find_timm(name: str) -> Architecture:
    """Return the model of that name, which must exist. Raises UnsupportedArchitectureError."""
    own_name = name.removeprefix(TIMM_PREFIX)
    config = timm.get_pretrained_cfg(own_name, allow_unregistered=False)
    if config is None:  # pragma: no cover - it exists
        raise UnsupportedArchitectureError(name, "timm does not say what it takes")
    return Architecture(
        name,
        _timm_transform(name, config),
        _timm_labels(config),
        build=lambda classes: _random_timm(own_name, classes),
        published=lambda: _published_timm(name, config),
    )


def _random_timm(own_name: str, classes: int | None) -> nn.Module:
    with seeded():
        return _created(own_name, {} if classes is None else {"num_classes": classes})


def _published_timm(name: str, config: PretrainedCfg) -> nn.Module:
    own_name = name.removeprefix(TIMM_PREFIX)
    place = _cached(f"timm--{own_name}{Path(_address(config)).suffix}")
    try:
        file = place if place.exists() else _downloaded(config)
        # timm's own loader knows the tensor names of the publishers.
        found = {"file": str(file), "custom_load": False}
        return _created(own_name, {"pretrained": True, "pretrained_cfg_overlay": found})
    except _UNAVAILABLE as error:
        raise _unavailable(name, error, _address(config), place) from error


def _created(own_name: str, arguments: dict[str, Any]) -> nn.Module:
    module: nn.Module = timm.create_model(own_name, **arguments)
    return module


def _address(config: PretrainedCfg) -> str:
    if config.hf_hub_id is None:
        return str(config.url or "")
    repository, _, revision = config.hf_hub_id.partition("@")
    file = config.hf_hub_filename or _WEIGHTS
    return f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{file}"


def _downloaded(config: PretrainedCfg) -> Path:
    if config.hf_hub_id is None:
        if not config.url:
            raise ValueError("nobody has published any")
        return Path(download_cached_file(config.url))
    # Imported here, because it takes long and other models do not need it.
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    repository, _, revision = config.hf_hub_id.partition("@")
    return Path(hf_hub_download(repository, config.hf_hub_filename or _WEIGHTS, revision=revision or None))


def _timm_transform(name: str, config: PretrainedCfg) -> Transform:
    """Return the preprocessing that timm uses to evaluate this model."""
    found = resolve_data_config(pretrained_cfg=asdict(config))  # type: ignore[no-untyped-call]
    channels, height, width = found["input_size"]
    interpolation = found["interpolation"]
    if channels != _CHANNELS:
        raise UnsupportedArchitectureError(name, f"it takes images of {channels} channels")
    if height != width:
        size = f"{width} x {height}"
        raise UnsupportedArchitectureError(name, f"it takes images of {size}, and only squares are made here")
    if interpolation not in {"bilinear", "bicubic"}:
        raise UnsupportedArchitectureError(name, f"its transform resizes by {interpolation}")
    resize, fit = math.floor(height / found["crop_pct"]), _FITS[found["crop_mode"]]
    return Transform(resize, height, interpolation, tuple(found["mean"]), tuple(found["std"]), fit)


def _timm_labels(config: PretrainedCfg) -> tuple[str, ...]:
    if config.label_names is not None:
        return tuple(config.label_names)
    subset = infer_imagenet_subset(asdict(config))
    if subset == "imagenet-1k":
        return imagenet_labels()
    if subset is not None:
        return tuple(ImageNetInfo(subset).label_descriptions())
    return tuple(f"class {index}" for index in range(config.num_classes))
