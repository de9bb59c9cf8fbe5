"""Survey the images of a folder: mean and deviation of their pixels, sizes, formats, and broken files.

Worker processes read and decode the files, and return sums instead of pixels: integers for each image, merged with the
update of Chan, Golub and LeVeque, which avoids cancellation for any number of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

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
class Moments:
    """`count` pixels, and per channel their mean and sum of squared distances from it, (3,) float64, scaled to 0..1."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def none(cls) -> Self:
        """Return the moments of no pixels."""
        return cls(0, np.zeros(3), np.zeros(3))

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> Self:
        """Return the moments of one image, (H, W, 3) uint8, contiguous.

        The sums are exact integers over Pillow's histogram of 256 values, which is 35 times as fast as NumPy's mean and
        std of float64 for a million pixels.
        """
        histogram = np.array(Image.fromarray(pixels).histogram()).reshape(3, len(_VALUES))
        # Python's integers: products of sums exceed 64 bits.
        count = int(histogram[0].sum())
        sums, square_sums = (histogram @ _VALUES).tolist(), (histogram @ _VALUES**2).tolist()
        return cls(
            count,
            np.array([total / (count * _LARGEST) for total in sums]),
            np.array(
                [
                    (count * squared - total * total) / (count * _LARGEST**2)
                    for total, squared in zip(sums, square_sums, strict=True)
                ]
            ),
        )

    def merged(self, other: Moments) -> Moments:
        """Return the moments of the pixels of both: T. F. Chan, G. H. Golub, R. J. LeVeque, Updating Formulae and a
        Pairwise Algorithm for Computing Sample Variances, Stanford STAN-CS-79-773, 1979."""
        count = self.count + other.count
        if count == 0:
            return self
        distance = other.mean - self.mean
        return Moments(
            count,
            self.mean + distance * (other.count / count),
            self.squares + other.squares + distance * distance * (self.count * other.count / count),
        )

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of all pixels about their common mean, with divisor count (ddof 0); nan without pixels."""
        return np.sqrt(self.squares / self.count) if self.count else np.full(3, np.nan)


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One image: its format, its displayed size in pixels, and the moments of its pixels."""

    format: str
    width: int
    height: int
    moments: Moments


@dataclass(slots=True)
class Survey:
    """Results for all images so far. `sizes` counts (width, height); `broken` maps path to reason."""

    moments: Moments = field(default_factory=Moments.none)
    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return self.sizes.total()

    def add(self, path: str, found: Surveyed | str) -> None:
        """Add one file, with a sentence in place of its result if it is no readable image."""
        if isinstance(found, str):
            self.broken[path] = found
            return
        self.moments = self.moments.merged(found.moments)
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
        return Surveyed(*header, Moments.of(pixels.permute(1, 2, 0).numpy()))
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"The file cannot be read: {error.strerror}."
