"""How much reduced JPEG decoding changes probabilities, and what it saves: `python -m benchmarks.reduced_jpegs FOLDER`.

Each photograph of FOLDER is scaled to 1, 3 and 12 megapixels and written as a JPEG of quality 90. The default model, in
float32 by PyTorch, gets it decoded in full, and at no less than 2 and 4 times the size that it resizes to. Prints, for
each size, the largest difference of a probability, its mean over the photographs, and the median CPU time of decode and
resize. To compare with rounding, the photograph is also decoded in full and resized in float32 instead of 8 bits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from io import BytesIO
from math import sqrt
from pathlib import Path
from statistics import mean, median
from time import process_time

import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812 - the field's name for it

from models import backends
from models.images.decode import decode_strips
from models.images.preprocessing import Transform, decode_image
from models.interface.request import ImageLimits
from models.loading import catalog
from models.loading.load import LoadedModel, load

_LIMITS = ImageLimits()
_MEGAPIXELS = (1, 3, 12)
_QUALITY = 90


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reduced_jpegs", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of JPEGs")
    files = sorted(parser.parse_args().folder.glob("*.jpg"))
    torch.set_num_threads(1)
    model = load(catalog.find(catalog.DEFAULT_MODEL), backends.place("cpu", "fp32", "eager"))
    for megapixels in _MEGAPIXELS:
        moved: dict[str, list[float]] = {name: [] for name in _WAYS}
        spent_s: dict[str, list[float]] = {name: [] for name in _WAYS}
        for file in files:
            encoded = _scaled(file, megapixels)
            expected = None
            for name, way in _WAYS.items():
                began = process_time()
                pixels = way(encoded, model.transform)
                spent_s[name].append(process_time() - began)
                found = _probabilities(model, pixels)
                expected = found if expected is None else expected
                moved[name].append(float((found - expected).abs().max()))
        for name in _WAYS:
            sys.stdout.write(
                f"{megapixels:3} MP, {name}: largest difference {max(moved[name]):.4f}, mean {mean(moved[name]):.4f}, "
                f"{1e3 * median(spent_s[name]):.1f} ms of CPU\n"
            )
        sys.stdout.flush()


def _scaled(file: Path, megapixels: int) -> bytes:
    with Image.open(file) as photograph:
        factor = sqrt(megapixels * 1e6 / (photograph.width * photograph.height))
        size = round(photograph.width * factor), round(photograph.height * factor)
        scaled = photograph.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    encoded = BytesIO()
    scaled.save(encoded, "JPEG", quality=_QUALITY)
    return encoded.getvalue()


def _decoded(encoded: bytes, transform: Transform, oversampling: int | None = None) -> torch.Tensor:
    return transform.shape_strips(
        decode_strips(encoded, _LIMITS, enough=None if oversampling is None else oversampling * transform.resize)
    )


def _in_float(encoded: bytes, transform: Transform) -> torch.Tensor:
    size, interpolation = [transform.resize], InterpolationMode(transform.interpolation)
    resized = F.resize(decode_image(encoded, _LIMITS).float(), size, interpolation=interpolation)
    cropped: torch.Tensor = F.center_crop(resized, [transform.crop])
    return cropped.round().clamp(0, 255).to(torch.uint8)


def _probabilities(model: LoadedModel, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        _, logits = model.network(model.normalize(pixels[None]))
        return torch.softmax(logits, dim=1)[0]


# The first is the reference.
_WAYS: dict[str, Callable[[bytes, Transform], torch.Tensor]] = {
    "in full": _decoded,
    "in full, resized in float32": _in_float,
    "at least 4 times": partial(_decoded, oversampling=4),
    "at least 2 times": partial(_decoded, oversampling=2),
}


if __name__ == "__main__":
    main()
