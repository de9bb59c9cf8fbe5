"""gradless's decode and its eager forward for peers: what then differs is the server alone."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.peers.classifier import MODEL
from models import backends
from models.backends.eager import served_network
from models.hardware import memory
from models.images import preprocessing
from models.interface.image_limits import ImageLimits
from models.loading import catalog
from models.loading.load import load
from models.networks.network import Network

_SPEC = catalog.find({"resnet50": "resnet50:random"}.get(MODEL, MODEL))
_LIMITS = ImageLimits()

memory.retain_freed_pages()
_MODEL = load(_SPEC, backends.place("cpu", "fp32", "eager"))


class _Logits(nn.Module):
    def __init__(self, served: Network) -> None:
        super().__init__()
        self.served = served

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.served(images)[1]
        return logits


def network() -> nn.Module:
    """BatchNorms folded, channels last, as gradless serves it; (N, 3, crop, crop) float32 to logits."""
    return _Logits(served_network(_MODEL)).eval()


def preprocess(encoded: bytes) -> torch.Tensor:
    """JPEG bytes to (3, crop, crop) uint8 RGB, as gradless does it."""
    return preprocessing.preprocess(encoded, _MODEL.transform, _LIMITS)
