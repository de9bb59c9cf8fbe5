"""Survey the images of a folder: mean and deviation of their pixels, sizes, formats, and broken files.

Worker processes read and decode the files, and return sums instead of pixels.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from models.hardware.cores import available_cores
from models.images.decode import ignore_pillow_warnings, read_header
from models.images.preprocessing import Transform, decode_image, preprocess
from models.interface.errors import ImageError, ImageTooLargeError, JobError
from models.interface.request import ImageLimits
from models.offline.statistics import Moments


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One image: its format, its displayed size in pixels, and the moments of its pixels."""

    format: str
    width: int
    height: int
    moments: Moments


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that is no readable image. `reason` is a sentence."""

    reason: str


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

    def add(self, path: str, found: Surveyed | Unreadable) -> None:
        if isinstance(found, Unreadable):
            self.broken[path] = found.reason
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
) -> Iterator[tuple[str, Surveyed | Unreadable]]:
    """Yield each of `files` with its result, in order. `workers` are processes: by default one per core, 0 for none.

    The pixels are those of the whole image in full size, from `decode_image`; with `transform`, those that a model with
    that transform gets. The workers start at once. The iterator raises JobError if one of them dies.
    """
    loader = DataLoader(
        _Pictures(files, limits, max_file_bytes, transform),
        batch_size=None,
        num_workers=available_cores() if workers is None else workers,
        worker_init_fn=_begin_reading,
    )
    # Not in a generator: the processes must start before the calling code starts threads.
    return _named(files, iter(loader))


def _named(files: Sequence[str], found: Iterator[Surveyed | Unreadable]) -> Iterator[tuple[str, Surveyed | Unreadable]]:
    try:
        yield from zip(files, found, strict=True)
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise JobError(f"a worker that reads files has died: {' '.join(str(error).split())}") from error


def _begin_reading(_worker: int) -> None:
    ignore_pillow_warnings()
    # A terminal sends Ctrl-C to all processes; the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Pictures(Dataset[Surveyed | Unreadable]):
    def __init__(
        self, files: Sequence[str], limits: ImageLimits, max_file_bytes: int, transform: Transform | None
    ) -> None:
        self._files = files
        self._limits = limits
        self._max_file_bytes = max_file_bytes
        self._transform = transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Surveyed | Unreadable:
        try:
            encoded = self._read(Path(self._files[number]))
            header = read_header(encoded)
            # The mode is thread-local, so it is entered in each worker.
            with torch.inference_mode():
                pixels = self._pixels(encoded)
            return Surveyed(*header, Moments.of(pixels.permute(1, 2, 0).numpy()))
        except ImageError as error:
            return Unreadable(str(error))
        except OSError as error:
            return Unreadable(f"The file cannot be read: {error.strerror}.")

    def _read(self, path: Path) -> bytes:
        if path.stat().st_size > self._max_file_bytes:
            raise ImageTooLargeError(self._max_file_bytes)
        return path.read_bytes()

    def _pixels(self, encoded: bytes) -> torch.Tensor:
        if self._transform is None:
            return decode_image(encoded, self._limits)
        return preprocess(encoded, self._transform, self._limits)
