"""timm's models as `timm/NAME` or `timm/NAME.TAG`; the tag selects one of the published weights.

Published weights come from the Hugging Face hub as safetensors, which hold tensors and no code. Those that have only a
URL are loaded with `weights_only`.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import timm
import torch
from safetensors import SafetensorError
from timm.data.config import resolve_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg
from timm.models._hub import download_cached_file
from torch import nn

from models.images.transforms import Fit, Transform
from models.interface.errors import UnsupportedArchitectureError, WeightsUnavailableError
from models.networks.architectures.architecture import SEED, Architecture, reason
from models.networks.architectures.torchvision import imagenet_labels

PREFIX = "timm/"

# timm's names for the handling of images that are not square.
_FITS: dict[str, Fit] = {"center": "crop", "squash": "stretch", "border": "pad"}

_CHANNELS = 3

_WEIGHTS = "model.safetensors"

_UNAVAILABLE = (
    URLError,
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    KeyError,
    UnpicklingError,
    SafetensorError,
)


def names() -> list[str]:
    """Return every architecture, without and with each of its tags."""
    return [f"{PREFIX}{name}" for name in (*timm.list_models(), *timm.list_models(pretrained=True))]


def exists(name: str) -> bool:
    """Return whether timm has that model; `name` begins with the prefix."""
    try:
        return timm.get_pretrained_cfg(name.removeprefix(PREFIX), allow_unregistered=False) is not None
    except RuntimeError:
        return False


def find(name: str) -> Architecture:
    """Return the model of that name, which must exist. Raises UnsupportedArchitectureError."""
    own_name = name.removeprefix(PREFIX)
    config = timm.get_pretrained_cfg(own_name, allow_unregistered=False)
    if config is None:  # pragma: no cover - it exists
        raise UnsupportedArchitectureError(name, "timm does not say what it takes")
    return Architecture(
        name,
        _transform(name, config),
        _labels(config),
        build=lambda classes: _random(own_name, classes),
        published=lambda: _published(name, config),
    )


def _random(own_name: str, classes: int | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return _created(own_name, {} if classes is None else {"num_classes": classes})


def _published(name: str, config: PretrainedCfg) -> nn.Module:
    own_name = name.removeprefix(PREFIX)
    place = Path(torch.hub.get_dir()) / "checkpoints" / f"timm--{own_name}{Path(_address(config)).suffix}"
    try:
        file = place if place.exists() else _downloaded(config)
        # timm's own loader knows the tensor names of the publishers.
        found = {"file": str(file), "custom_load": False}
        return _created(own_name, {"pretrained": True, "pretrained_cfg_overlay": found})
    except _UNAVAILABLE as error:
        raise WeightsUnavailableError(
            name, reason(error), f"On a closed network put {_address(config)} at {place}, or serve {name}:random."
        ) from error


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


def _transform(name: str, config: PretrainedCfg) -> Transform:
    """Return the preprocessing that timm uses to evaluate this model."""
    found = resolve_data_config(pretrained_cfg=asdict(config))  # type: ignore[no-untyped-call]
    channels, height, width = found["input_size"]
    interpolation = found["interpolation"]
    if channels != _CHANNELS:
        raise UnsupportedArchitectureError(name, f"it takes images of {channels} channels")
    if height != width:
        raise UnsupportedArchitectureError(
            name, f"it takes images of {width} x {height}, and only squares are made here"
        )
    if interpolation not in {"bilinear", "bicubic"}:
        raise UnsupportedArchitectureError(name, f"its transform resizes by {interpolation}")
    return Transform(
        math.floor(height / found["crop_pct"]),
        height,
        interpolation,
        tuple(found["mean"]),
        tuple(found["std"]),
        _FITS[found["crop_mode"]],
    )


def _labels(config: PretrainedCfg) -> tuple[str, ...]:
    if config.label_names is not None:
        return tuple(config.label_names)
    subset = infer_imagenet_subset(asdict(config))
    if subset == "imagenet-1k":
        return imagenet_labels()
    if subset is not None:
        return tuple(ImageNetInfo(subset).label_descriptions())
    return tuple(f"class {index}" for index in range(config.num_classes))
