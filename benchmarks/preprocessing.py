"""Compare the CPU time of gradless's preprocessing with Pillow's, in one thread, alternately on each file. A script;
prints one line of JSON for each size."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from time import perf_counter, process_time

import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812 - the field's name for it

from models.images.preprocessing import Transform, preprocess
from models.interface.request import ImageLimits
from models.loading import catalog

Way = Callable[[bytes, Transform], torch.Tensor]

_LIMITS = ImageLimits()

# Minimum for each size, because the first may be slower.
_LEAST_IMAGES = 4


def by_gradless(encoded: bytes, transform: Transform) -> torch.Tensor:
    """Return (3, crop, crop) uint8 as the service does, with a reduced decode of larger files."""
    return preprocess(encoded, transform, _LIMITS)


def by_pillow(encoded: bytes, transform: Transform) -> torch.Tensor:
    """Return (3, crop, crop) uint8 as the presets of torchvision's weights do."""
    return shaped_by_pillow(Image.open(BytesIO(encoded)), transform)


def shaped_by_pillow(picture: Image.Image, transform: Transform) -> torch.Tensor:
    """Do all of `by_pillow` except the opening; Pillow decodes here."""
    interpolation = InterpolationMode(transform.interpolation)
    resized = F.resize(picture.convert("RGB"), [transform.resize], interpolation=interpolation)
    pixels: torch.Tensor = F.pil_to_tensor(F.center_crop(resized, [transform.crop, transform.crop]))
    return pixels


def cpu_ms(bodies: Sequence[bytes], transform: Transform, seconds: float) -> dict[str, float]:
    """Return the mean CPU time of an image in ms, user and system, for each way, and the number of images."""
    ways: dict[str, Way] = {"gradless": by_gradless, "Pillow": by_pillow}
    spent_s = dict.fromkeys(ways, 0.0)
    for way in ways.values():
        way(bodies[0], transform)
    deadline = perf_counter() + seconds
    images = 0
    for body in cycle(bodies):
        for name, way in ways.items():
            before = process_time()
            way(body, transform)
            spent_s[name] += process_time() - before
        images += 1
        if images >= _LEAST_IMAGES and perf_counter() > deadline:
            break
    return {"images": images, **{name: spent / images * 1e3 for name, spent in spent_s.items()}}


def main() -> None:
    """Run with arguments from benchmarks.in_process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="for each size")
    parser.add_argument("--size", nargs="+", action="append", required=True, help="a name, then its JPEG files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transform = catalog.find(catalog.DEFAULT_MODEL).build().transform
    for size, *files in options.size:
        bodies = [Path(file).read_bytes() for file in files]
        sys.stdout.write(json.dumps({"size": size, **cpu_ms(bodies, transform, options.seconds)}) + "\n")


if __name__ == "__main__":
    main()
