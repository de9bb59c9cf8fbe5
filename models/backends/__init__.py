"""Ways to run a forward. A backend is made from a loaded model; it maps a batch of pixels to features and logits."""

from __future__ import annotations

import sys

from models.backends.backend import DEFAULT_CACHE_FOLDER, Backend, BackendOptions, BatchHints
from models.backends.registry import caches_conversions, check, make, names, place

__all__ = [
    "DEFAULT_CACHE_FOLDER",
    "Backend",
    "BackendOptions",
    "BatchHints",
    "caches_conversions",
    "check",
    "make",
    "names",
    "place",
]

# OpenVINO and NNCF send usage statistics to their makers at each import, unless this package cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to make an import fail
