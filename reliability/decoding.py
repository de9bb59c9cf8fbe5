"""Preprocess mutated images as the service does: `python -m reliability.decoding`.

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import warnings
from collections import Counter
from typing import NamedTuple

import psutil
import torch

from models.hardware import memory
from models.images.preprocessing import preprocess
from models.interface.errors import ImageError
from models.interface.request import ImageLimits
from models.loading import catalog
from reliability.mutations import SEED, mutated_images

# By then decoders have made their one-time allocations.
_WARMING_SHARE = 0.25


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m reliability.decoding", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    # Pillow warns of damage that it tolerates; the warnings would drown the output.
    warnings.simplefilter("ignore")
    logging.disable()
    memory.retain_freed_pages()
    transform = catalog.find(catalog.NULL_MODEL).build().transform
    warm_at, before = round(options.images * _WARMING_SHARE), _Resident(0, 0)
    outcomes: Counter[str] = Counter()
    unexpected: Counter[str] = Counter()
    for number, image in enumerate(mutated_images(options.seed, options.images)):
        if number == warm_at:
            before = _resident()
        try:
            preprocess(image, transform, ImageLimits())
        except ImageError as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:  # noqa: BLE001 - any other exception is a finding
            unexpected[f"{type(error).__name__}: {error}"[:200]] += 1
        else:
            outcomes["decoded"] += 1
    after = _resident()
    report = {
        "outcomes": outcomes,
        "unexpected": unexpected,
        "grown_mb": (after.without_free - before.without_free) / 1e6,
        "grown_with_free_mb": (after.with_free - before.with_free) / 1e6,
    }
    sys.stdout.write(json.dumps(report) + "\n")


class _Resident(NamedTuple):
    """Resident bytes of this process, with and without freed pages."""

    with_free: int
    without_free: int


def _resident() -> _Resident:
    """Resident memory after freed pages were returned to the system.

    The heap keeps freed pages (models/hardware/memory.py), so plain RSS is as high as the largest image so far made it.
    One damaged GIF of 9.8 megapixels added 21 MB with no more in use than before.
    """
    process = psutil.Process()
    with_free = process.memory_info().rss
    gc.collect()
    memory.trim(torch.device("cpu"))
    return _Resident(with_free, process.memory_info().rss)


if __name__ == "__main__":
    main()
