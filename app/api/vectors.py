"""Feature vectors in answers."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray


def scaled(vector: NDArray[np.float32], *, normalize: bool) -> NDArray[np.float32]:
    """Return `vector`, with `normalize` scaled to length 1; a zero vector as it is."""
    if not normalize:
        return vector
    # In float64, because squares of float32 values can overflow and underflow.
    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / length).astype(np.float32) if length else vector


def base64_of(vector: NDArray[np.float32]) -> str:
    """Return base64 of the numbers as little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
