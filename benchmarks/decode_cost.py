"""Predicted and measured costs of decodes: `python -m benchmarks.decode_cost [FILE...]`.

Without FILE, the files are those of reliability.costly and ordinary ones. A fork of this process decodes and resizes
each file twice, unless the prediction exceeds 8 s. Prints the CPU seconds (the less of the two), the growth of resident
memory, the predictions and the ratios.

Ends with status 1 if a decode cost more than predicted, because the constants in models/images/ must be upper bounds.
Files whose header does not tell their cost are exempt: the limits of the decoder process stop those.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from time import process_time
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from models.images.costs import DecodeCost
from models.images.decode import decode_strips, ignore_pillow_warnings
from models.images.formats import predict_cost
from models.images.preprocessing import pixels_needed
from models.interface.errors import ImageError
from models.interface.request import ImageLimits
from models.loading import catalog
from reliability.costly import CORPUS
from reliability.profiles import of_tables

_NO_LIMITS = ImageLimits(max_decode_seconds=1e9, max_decode_bytes=2**60)
_LONGEST_S = 8.0
# CPU seconds and bytes below which a difference is the clock's and the allocator's.
_LEAST_S = 0.02
_LEAST_BYTES = 16_000_000
# A JPEG stream within a TIFF has scans of its own, a lossless WebP tables for every few pixels.
_NOT_TOLD = ("tiff-jpeg", "tiff-tiles-of-arithmetic", "webp-65536-groups")
_PIPE_BYTES = 65_536


class _Measured(NamedTuple):
    seconds: float
    memory_bytes: int
    outcome: str


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_cost", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="files to decode in place of the corpus")
    options = parser.parse_args()
    files: Mapping[str, Callable[[], bytes]] = {path.name: path.read_bytes for path in options.files} or {
        **CORPUS,
        **_ordinary(),
    }
    torch.set_num_threads(1)
    ignore_pillow_warnings()
    held = [_compare(name, make()) for name, make in files.items()]
    sys.exit(0 if all(held) else 1)


def _ordinary() -> dict[str, Callable[[], bytes]]:
    """Return pictures of noise, the most expensive content of ordinary files."""
    picture = Image.effect_noise((4000, 3000), 60).convert("RGB")
    # Written in seconds, not in minutes.
    fast: dict[str, dict[str, object]] = {"AVIF": {"speed": 10}, "HEIF": {"enc_params": {"preset": "ultrafast"}}}
    files: dict[str, Callable[[], bytes]] = {
        f"noise-12-MP.{name.lower()}": partial(_encoded, picture, name, fast.get(name, {}))
        for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "HEIF")
    }
    for mode in ("RGB", "CMYK"):
        tables = of_tables(np.random.default_rng(0).uniform(0, 100, (24,) * len(mode) + (3,)))
        options = {"icc_profile": tables}
        files |= {
            f"noise-12-MP-{mode}-tables.{name.lower()}": partial(_encoded, picture.convert(mode), name, options)
            for name in ("JPEG", "TIFF")
        }
    return files


def _encoded(picture: Image.Image, image_format: str, options: Mapping[str, object]) -> bytes:
    file = BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


def _compare(name: str, encoded: bytes) -> bool:
    """Print a line. Return False if a decode cost more than predicted."""
    transform = catalog.find(catalog.NULL_MODEL).build().transform
    try:
        predicted = predict_cost(encoded, _NO_LIMITS, enough=pixels_needed(transform))
    except ImageError as error:
        _say(f"{name:44} refused: {error}")
        return True
    if predicted.seconds > _LONGEST_S:
        _say(f"{name:44} {predicted.seconds:8.2f} s predicted: not decoded")
        return True
    measured = min((_measure(encoded) for _ in range(2)), key=lambda each: each.seconds)
    held = _is_bounded(measured, predicted)
    exempt = name.startswith(_NOT_TOLD)
    _say(
        f"{name:44} {measured.seconds:8.3f} s of {predicted.seconds:7.3f} "
        f"({measured.seconds / predicted.seconds:4.2f}), "
        f"{measured.memory_bytes / 1e6:6.1f} MB of {predicted.memory_bytes / 1e6:6.1f} "
        f"({measured.memory_bytes / predicted.memory_bytes:4.2f}), {measured.outcome}"
        f"{'' if held else ', not visible in its header' if exempt else ', MORE THAN PREDICTED'}"
    )
    return held or exempt


def _is_bounded(measured: _Measured, predicted: DecodeCost) -> bool:
    return measured.seconds <= max(predicted.seconds, _LEAST_S) and measured.memory_bytes <= max(
        predicted.memory_bytes, _LEAST_BYTES
    )


def _measure(encoded: bytes) -> _Measured:
    """Decode in a fork, so that the peak of memory is that of the decode."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, json.dumps(_decode(encoded)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        output = pipe.read(_PIPE_BYTES)
    _, status = os.waitpid(child, 0)
    return _Measured(*json.loads(output)) if output else _Measured(0.0, 0, f"died with status {status}")


def _decode(encoded: bytes) -> _Measured:
    transform = catalog.find(catalog.NULL_MODEL).build().transform
    # Resets VmHWM, the peak of resident memory (proc(5)).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, began = _status_bytes("VmRSS"), process_time()
    outcome = "decoded"
    try:
        transform.shape_strips(decode_strips(encoded, _NO_LIMITS, enough=pixels_needed(transform)))
    except ImageError as error:
        outcome = type(error).__name__
    return _Measured(process_time() - began, _status_bytes("VmHWM") - before, outcome)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
