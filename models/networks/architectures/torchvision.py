"""torchvision's classifiers, with the weights, transforms and categories that it publishes for them."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from models.images.transforms import Transform
from models.interface.errors import UnsupportedArchitectureError, WeightsUnavailableError
from models.networks.architectures.architecture import SEED, Architecture, reason

# Arguments that torchvision's builders set when they load the weights of these architectures.
_ARGUMENTS: dict[str, dict[str, object]] = {
    "googlenet": {"transform_input": True},
    "inception_v3": {"transform_input": True},
    "vit_h_14": {"image_size": 518},
}

# Architectures whose builders take `init_weights`.
_WITH_INIT_WEIGHTS = frozenset({"googlenet", "inception_v3"})


def imagenet_labels() -> tuple[str, ...]:
    """Return the 1000 class names of ImageNet-1k in index order, from the metadata of torchvision's weights."""
    return tuple(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def names() -> list[str]:
    """Return the name of every architecture."""
    listed: list[str] = torchvision.models.list_models(module=torchvision.models)
    return listed


def find(name: str) -> Architecture:
    """Return the architecture of that name, one of `names()`. Raises UnsupportedArchitectureError."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    return Architecture(
        name,
        _preset(name, weights),
        tuple(weights.meta["categories"]),
        build=lambda classes: _random(name, classes),
        published=lambda: _published(name, weights),
    )


def _random(name: str, classes: int | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module: nn.Module = torchvision.models.get_model(
            name,
            weights=None,
            **_arguments(name, init_weights=True),
            **({} if classes is None else {"num_classes": classes}),
        )
    return module


def _arguments(name: str, *, init_weights: bool) -> dict[str, object]:
    asked: dict[str, object] = {"init_weights": init_weights} if name in _WITH_INIT_WEIGHTS else {}
    return _ARGUMENTS.get(name, {}) | asked


def _published(name: str, weights: torchvision.models.WeightsEnum) -> nn.Module:
    try:
        # Not by the builder, which would unpickle any file at that path.
        state = weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
        module: nn.Module = torchvision.models.get_model(name, weights=None, **_arguments(name, init_weights=False))
        module.load_state_dict(state)
    except (URLError, OSError, RuntimeError, EOFError, UnpicklingError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise WeightsUnavailableError(
            name,
            reason(error),
            f"On a closed network put {weights.url} at {file}, or serve {name}:random.",
        ) from error
    return module


def _preset(name: str, weights: torchvision.models.WeightsEnum) -> Transform:
    preset = weights.transforms()
    interpolation = preset.interpolation.value
    if interpolation not in {"bilinear", "bicubic"}:
        raise UnsupportedArchitectureError(name, f"its transform resizes by {interpolation}")
    return Transform(preset.resize_size[0], preset.crop_size[0], interpolation, tuple(preset.mean), tuple(preset.std))
