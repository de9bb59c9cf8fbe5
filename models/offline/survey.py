"""What the pictures of a folder are like: mean and deviation of their pixels, sizes, formats, and which are broken.

Each file is read and decoded in a worker process, which sends back sums and not pictures.
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
from models.images.preprocessing import decode_image, preprocess
from models.images.transforms import Transform
from models.interface.errors import ImageError, ImageTooLargeError, JobError
from models.interface.image_limits import ImageLimits
from models.offline.statistics import Moments


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One picture: its format, its size in pixels as a person sees it, and the moments of its pixels."""

    format: str
    width: int
    height: int
    moments: Moments


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file without a picture, and why in one sentence."""

    reason: str


@dataclass(slots=True)
class Survey:
    """Of all pictures so far. `sizes` are (width, height); `broken` the reason by path."""

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
    """Each of `files` with what was found, in their order, whatever the number of `workers`: processes, by default one
    for each core, with 0 this one alone.

    Pixels are those of the whole picture in full size, as `decode_image` gives them; with `transform` those that a
    model with it gets. The workers are started at once. They raise JobError when one of them dies.
    """
    loader = DataLoader(
        _Pictures(files, limits, max_file_bytes, transform),
        batch_size=None,
        num_workers=available_cores() if workers is None else workers,
        worker_init_fn=_begin_reading,
    )
    # Here, not in a generator: the processes are made before the caller starts threads of its own.
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
    # Ctrl-C goes to all of them, and only the parent has something to say.
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
            # Of this thread, and so to be entered in each worker.
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
