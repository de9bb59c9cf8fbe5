"""BentoML: a service that decodes, and a batching service behind it in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
import torch
from bentoml.validators import ContentType
from numpy.typing import NDArray

from benchmarks.peers.classifier import MAX_BATCH_SIZE, WORKERS, Classifier, preprocess

DECODE_THREADS = 2
TIMEOUT_S = 120

_QUIET = {"access": {"enabled": False}}


@bentoml.service(workers=WORKERS, traffic={"timeout": TIMEOUT_S}, logging=_QUIET)
class Forward:
    """A service for batches of decoded images."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=TIMEOUT_S * 1000)
    def classify(self, images: NDArray[np.uint8]) -> list[Any]:
        """Map (N, 3, crop, crop) uint8 to N answers."""
        return list(self.classifier.classify(torch.from_numpy(np.array(images))))


@bentoml.service(workers=1, threads=DECODE_THREADS, traffic={"timeout": TIMEOUT_S}, logging=_QUIET)
class HttpService:
    """A service of one image a request."""

    forward = bentoml.depends(Forward)

    def __init__(self) -> None:
        torch.set_num_threads(1)

    @bentoml.api(route="/")
    def classify(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> list[Any]:
        """Decode here, then call the batching service."""
        pixels = preprocess(image.read_bytes())
        first: list[Any] = self.forward.classify(pixels.numpy()[None])[0]
        return first
