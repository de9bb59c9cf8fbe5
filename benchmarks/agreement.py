"""Compare each backend and precision with the original network in fp32 behind Pillow's decode.

Prints a line of JSON for each: how often the top-1 class agrees, and the largest difference of a probability.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageOps

from benchmarks.ceilings import CACHE
from benchmarks.preprocessing import by_gradless, shaped_by_pillow
from models import backends
from models.backends import BackendOptions, place
from models.hardware import memory
from models.interface.errors import StartError
from models.interface.model_sources import Precision
from models.loading import catalog
from models.loading.calibration import Calibration
from models.loading.load import LoadedModel, load

Forward = Callable[[torch.Tensor], torch.Tensor]


def probabilities(forward: Forward, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (N, C) float32 for N images (3, side, side) uint8, one a forward, so that `compiled` compiles one
    graph."""
    with torch.inference_mode():
        return torch.cat([forward(image[None]).float().softmax(dim=1) for image in images])


def reference(bodies: Sequence[bytes], model: LoadedModel) -> torch.Tensor:
    """Return (N, C) probabilities of PyTorch's forward on Pillow's pixels, with EXIF orientation applied."""
    images = [shaped_by_pillow(ImageOps.exif_transpose(Image.open(BytesIO(body))), model.transform) for body in bodies]
    return probabilities(lambda pixels: model.network(model.normalize(pixels)).logits, images)


def served(images: Sequence[torch.Tensor], model: LoadedModel) -> torch.Tensor:
    """Return (N, C) probabilities by the backend of `model`'s placement. Raises StartError."""
    backend = backends.make(model, BackendOptions(max_batch_size=1, cache_folder=CACHE))
    try:
        torch.set_num_threads(backend.hints.intra_op_threads)
        return probabilities(lambda pixels: backend.run(pixels).logits, images)
    finally:
        backend.close()


def compared(expected: torch.Tensor, found: torch.Tensor) -> dict[str, float]:
    """Compare (N, C) probabilities: return N, the rows with the same top-1 class, and the largest difference."""
    return {
        "images": len(expected),
        "agreeing": int((expected.argmax(dim=1) == found.argmax(dim=1)).sum()),
        "largest_difference": float((expected - found).abs().max()),
    }


def _report(engine: str, images: Sequence[torch.Tensor], expected: torch.Tensor, folder: Path) -> dict[str, Any]:
    backend, precision = engine.split()
    calibration = Calibration.of(folder) if precision == "int8" else None
    try:
        placement = place("cpu", cast("Precision", precision), backend)
        model = load(catalog.find(catalog.DEFAULT_MODEL), placement, calibration)
        found = served(images, model)
    except StartError as error:
        return {"engine": engine, "refused": str(error)}
    return {"engine": engine, **compared(expected, found)}


def main() -> None:
    """Run with arguments from benchmarks.in_process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", nargs="+", required=True, help="each a backend and a precision")
    parser.add_argument("--calibration-folder", type=Path, required=True, help="images, for int8 only")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="JPEG files to compare on")
    options = parser.parse_args()
    bodies = [path.read_bytes() for path in options.pictures]
    memory.retain_freed_pages()
    model = load(catalog.find(catalog.DEFAULT_MODEL), place("cpu", "fp32", "eager"))
    expected = reference(bodies, model)
    images = [by_gradless(body, model.transform) for body in bodies]
    for engine in options.engines:
        report = _report(engine, images, expected, options.calibration_folder)
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
