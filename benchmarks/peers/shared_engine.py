"""gradless's decode and forward for peers, so that only the servers differ."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.peers.classifier import ENGINE, MAX_BATCH_SIZE, MODEL, THREADS
from models import backends
from models.backends import BackendOptions
from models.hardware import cores, memory
from models.images import preprocessing
from models.interface.request import ImageLimits
from models.loading import catalog
from models.loading.load import load

_LIMITS = ImageLimits()
_SPEC = catalog.find({"resnet50": "resnet50:random"}.get(MODEL, MODEL))
# Folder of converted models for all processes of a benchmark.
_CACHE = Path(tempfile.gettempdir()) / "gradless-bench-conversions"

memory.retain_freed_pages()
cores.limit_cores(THREADS)
# The null model has a backend of its own.
_MODEL = load(_SPEC, backends.place("cpu", "fp32", "openvino" if ENGINE == "openvino" else "eager"))


class Forward:
    """Return gradless's backend for up to MAX_BATCH_SIZE images."""

    def __init__(self) -> None:
        _CACHE.mkdir(exist_ok=True)
        self._backend = backends.make(_MODEL, BackendOptions(max_batch_size=MAX_BATCH_SIZE, cache_folder=_CACHE))

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, crop, crop) uint8 to (N, classes)."""
        return self._backend.run(batch.contiguous(memory_format=torch.channels_last)).logits


def preprocess(encoded: bytes) -> torch.Tensor:
    """Map JPEG bytes to (3, crop, crop) uint8 RGB."""
    return preprocessing.preprocess(encoded, _MODEL.transform, _LIMITS)
