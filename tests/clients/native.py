"""What the native routes answer, for the cases of clients, which run in environments without gradless."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

URL = os.environ["GRADLESS_URL"]
ADDRESS = URL.removeprefix("http://")
GRPC = os.environ["GRADLESS_GRPC"]
MODEL = "efficientnet_lite0"
# Of MODEL's normalization.
MEAN, STD = 127 / 255, 128 / 255

CLOCK, LIGHT = (Path(f"{name}.jpg").read_bytes() for name in ("clock", "light"))
# (2, 3, 224, 224) uint8.
PIXELS: NDArray[np.uint8] = np.stack([np.load(f"{name}.npy") for name in ("clock", "light")])


def _post(path: str, image: bytes) -> Any:
    with urllib.request.urlopen(f"{URL}{path}", image, timeout=30) as answer:  # noqa: S310 - our own
        return json.load(answer)["results"][0]


def classes(image: bytes, top_k: int = 5) -> list[dict[str, Any]]:
    """Return the likeliest classes of an image: index, label, probability."""
    found: list[dict[str, Any]] = _post(f"/v1/classify?top_k={top_k}", image)["predictions"]
    return found


def probabilities(image: bytes) -> NDArray[np.float32]:
    """Return the probabilities of all classes by index, (1000,)."""
    found = np.zeros(1000, np.float32)
    for each in classes(image, 1000):
        found[each["index"]] = each["probability"]
    return found


def features(image: bytes, *, normalize: bool = False) -> NDArray[np.float32]:
    """Return the feature vector of an image, (1280,)."""
    return np.array(_post(f"/v1/features?normalize={str(normalize).lower()}", image)["features"], np.float32)


def normalized(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return `pixels`, 0..255, as the network takes them."""
    return ((pixels / 255 - MEAN) / STD).astype(np.float32)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Answers differ in their last bits from batch to batch."""
    np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(expected, np.float32), atol=tolerance)
