"""How much reduced JPEG decoding changes probabilities, and what it saves: `python -m benchmarks.reduced_jpegs FOLDER`.

Each photograph of FOLDER is scaled to 1, 3 and 12 megapixels and written as a JPEG of quality 90. The default model, in
float32 by PyTorch, gets it decoded in full and at no less than 2, 3, 4 … times the size that it resizes to. Prints, for
each size, the largest difference of a probability, and the mean CPU time of decode and resize.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from io import BytesIO
from math import sqrt
from pathlib import Path
from time import process_time

import torch
from PIL import Image

from models import backends
from models.images.decode import decode_strips
from models.images.preprocessing import Transform
from models.interface.request import ImageLimits
from models.loading import catalog
from models.loading.load import LoadedModel, load

_LIMITS = ImageLimits()
_MEGAPIXELS = (1, 3, 12)
# 1: as small as the input. None: in full.
_OVERSAMPLINGS = (2, 3, 4, None)
_QUALITY = 90


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reduced_jpegs", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of JPEGs")
    files = sorted(parser.parse_args().folder.glob("*.jpg"))
    torch.set_num_threads(1)
    model = load(catalog.find(catalog.DEFAULT_MODEL), backends.place("cpu", "fp32", "eager"))
    for megapixels in _MEGAPIXELS:
        worst = dict.fromkeys(_OVERSAMPLINGS, 0.0)
        spent_s = dict.fromkeys(_OVERSAMPLINGS, 0.0)
        for file in files:
            encoded = _scaled(file, megapixels)
            expected = None
            for oversampling in reversed(_OVERSAMPLINGS):
                began = process_time()
                pixels = _preprocessed(encoded, model.transform, oversampling)
                spent_s[oversampling] += process_time() - began
                found = _probabilities(model, pixels)
                expected = found if expected is None else expected
                worst[oversampling] = max(worst[oversampling], float((found - expected).abs().max()))
        for line in _lines(megapixels, worst, spent_s, len(files)):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def _scaled(file: Path, megapixels: int) -> bytes:
    with Image.open(file) as photograph:
        factor = sqrt(megapixels * 1e6 / (photograph.width * photograph.height))
        size = round(photograph.width * factor), round(photograph.height * factor)
        scaled = photograph.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    encoded = BytesIO()
    scaled.save(encoded, "JPEG", quality=_QUALITY)
    return encoded.getvalue()


def _preprocessed(encoded: bytes, transform: Transform, oversampling: int | None) -> torch.Tensor:
    enough = None if oversampling is None else oversampling * transform.resize
    return transform.shape_strips(decode_strips(encoded, _LIMITS, enough=enough))


def _probabilities(model: LoadedModel, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        _, logits = model.network(model.normalize(pixels[None]))
        return torch.softmax(logits, dim=1)[0]


def _lines(
    megapixels: int, worst: dict[int | None, float], spent_s: dict[int | None, float], files: int
) -> Iterator[str]:
    for oversampling in _OVERSAMPLINGS:
        yield (
            f"{megapixels:3} MP, {'in full' if oversampling is None else f'at least {oversampling} times'}: "
            f"largest difference {worst[oversampling]:.4f}, {1e3 * spent_s[oversampling] / files:.1f} ms of CPU"
        )


if __name__ == "__main__":
    main()
