"""Mutated images through the service's own way from bytes to pixels: `python -m reliability.decoding`.

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections import Counter

import psutil

from models import catalog, memory
from models.errors import ImageError
from models.limits import ImageLimits
from models.preprocessing import preprocess
from reliability.mutations import SEED, mutated_images

# What decoders allocate once has been by then.
_WARMING_SHARE = 0.25


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m reliability.decoding", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=SEED)
    wanted = parser.parse_args()
    # Pillow warns of what it reads on from; a service's log shows that once, and here it would be all there is to see.
    warnings.simplefilter("ignore")
    logging.disable()
    memory.keep_freed()
    transform = catalog.find(catalog.NULL_MODEL).build().transform
    process, warm_at, before = psutil.Process(), round(wanted.images * _WARMING_SHARE), 0
    outcomes: Counter[str] = Counter()
    strange: Counter[str] = Counter()
    for number, image in enumerate(mutated_images(wanted.seed, wanted.images)):
        if number == warm_at:
            before = process.memory_info().rss
        try:
            preprocess(image, transform, ImageLimits())
        except ImageError as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:  # noqa: BLE001 - to be told of is what it is looked for
            strange[f"{type(error).__name__}: {error}"[:200]] += 1
        else:
            outcomes["decoded"] += 1
    grown_mb = (process.memory_info().rss - before) / 1e6
    sys.stdout.write(json.dumps({"outcomes": outcomes, "strange": strange, "grown_mb": grown_mb}) + "\n")


if __name__ == "__main__":
    main()
