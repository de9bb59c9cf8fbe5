"""Survey the images of a folder: mean and deviation of their pixels, sizes, formats, and broken files.

Worker processes read and decode the files, and return the histogram of each image instead of its pixels. The sums over
all histograms are exact integers, so that mean and deviation do not depend on the order or number of the images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.hardware.cores import available_cores
from models.images.decode import read_header
from models.images.preprocessing import Transform, decode_image, preprocess
from models.interface.errors import ImageError
from models.interface.request import ImageLimits
from models.offline import reading

_VALUES = np.arange(256)
_LARGEST = 255


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One image: its format, its displayed size in pixels, and the pixels of each value by channel, (3, 256) int64."""

    format: str
    width: int
    height: int
    histogram: NDArray[np.int64]


@dataclass(slots=True)
class Survey:
    """Results for all images so far. `histogram` is the sum of theirs, (3, 256) int64; `sizes` counts (width, height);
    `broken` maps path to reason."""

    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), dtype=np.int64))
    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return self.sizes.total()

    @property
    def pixels(self) -> int:
        return int(self.histogram[0].sum())

    @property
    def mean(self) -> list[float]:
        """Mean of each channel, 0..1, of at least one image."""
        return [total / (self.pixels * _LARGEST) for total in (self.histogram @ _VALUES).tolist()]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel about the mean of all pixels, with divisor `pixels` (ddof 0)."""
        # Python's integers: the products exceed 64 bits.
        count, sums, square_sums = self.pixels, self.histogram @ _VALUES, self.histogram @ _VALUES**2
        return [
            sqrt(count * squared - total * total) / (count * _LARGEST)
            for total, squared in zip(sums.tolist(), square_sums.tolist(), strict=True)
        ]

    def add(self, path: str, found: Surveyed | str) -> None:
        """Add one file, with a sentence in place of its result if it is no readable image."""
        if isinstance(found, str):
            self.broken[path] = found
            return
        self.histogram += found.histogram
        self.formats[found.format] += 1
        self.sizes[found.width, found.height] += 1


def survey(
    files: Sequence[str],
    *,
    limits: ImageLimits,
    max_file_bytes: int,
    transform: Transform | None = None,
    workers: int | None = None,
) -> Iterator[tuple[str, Surveyed | str]]:
    """Yield each of `files` with its result, in order. `workers` are processes: by default one per core, 0 for none.

    The pixels are those of the whole image in full size, from `decode_image`; with `transform`, those that a model with
    that transform gets. The workers start at once. The iterator raises JobError if one of them dies.
    """
    read = partial(_surveyed, limits=limits, max_bytes=max_file_bytes, transform=transform)
    # Forked: no model has been loaded, and no thread has been started.
    return reading.load(files, read, workers=available_cores() if workers is None else workers, context="fork")


def _surveyed(path: str, *, limits: ImageLimits, max_bytes: int, transform: Transform | None) -> Surveyed | str:
    try:
        encoded = reading.read_file(path, max_bytes)
        header = read_header(encoded)
        # The mode is thread-local, so it is entered in each worker.
        with torch.inference_mode():
            pixels = decode_image(encoded, limits) if transform is None else preprocess(encoded, transform, limits)
        # Pillow's histogram is 35 times as fast as NumPy's mean and std of float64 for a million pixels.
        histogram = Image.fromarray(pixels.permute(1, 2, 0).numpy()).histogram()
        return Surveyed(*header, np.array(histogram).reshape(3, len(_VALUES)))
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"The file cannot be read: {error.strerror}."
