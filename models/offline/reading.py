"""From files to batches of pixels: a DataLoader whose workers read and preprocess as the service does for a request.

Workers are forked from a server process that has imported what they need and has no threads but its own: this process
has OpenVINO's and PyTorch's, and a fork of it could hang in a lock that none of its threads will ever let go.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from models.images.decode import ignore_pillow_warnings
from models.images.preprocessing import preprocess
from models.images.transforms import Transform
from models.interface.errors import ImageError, ImageTooLargeError, JobError
from models.interface.image_limits import ImageLimits

# Batches that each worker has ready or under way: one is taken while the next is made.
_AHEAD = 2

# Where tensors pass from workers to this process.
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - no file of ours


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read: what a model does with pixels, and what the service would refuse."""

    transform: Transform
    limits: ImageLimits
    max_bytes: int

    def pixels(self, path: str) -> torch.Tensor | str:
        """(3, crop, crop) uint8, channels last in memory, of the image in that file; or why there is none, as a
        sentence: for an image's own fault, and for a file that cannot be read."""
        # Strings all the way, no Path: there may be millions.
        return self.pixels_of(lambda: self.encoded(open(path, "rb")))  # noqa: PTH123 - closed there

    def pixels_of(self, read: Callable[[], bytes]) -> torch.Tensor | str:
        """As `pixels`, of what `read` gives, as `encoded` does."""
        try:
            return preprocess(read(), self.transform, self.limits)
        except ImageError as error:
            return str(error)
        except OSError as error:
            return f"The file cannot be read: {error.strerror or error}."

    def encoded(self, file: IO[bytes]) -> bytes:
        """All of an open file, which is closed. Raises ImageTooLargeError, OSError."""
        with file:
            encoded = file.read(self.max_bytes + 1)
        if len(encoded) > self.max_bytes:
            raise ImageTooLargeError(self.max_bytes)
        return encoded


@dataclass(frozen=True, slots=True)
class Batch:
    """Files that follow one another. `pixels` (N, 3, crop, crop) uint8, channels last in memory, are those of the
    files that could be read; `faults` says of the others, by their place among `paths`, why not."""

    paths: tuple[str, ...]
    pixels: torch.Tensor
    faults: dict[int, str]

    @classmethod
    def of(cls, images: Sequence[tuple[str, torch.Tensor | str]], side: int) -> Batch:
        """`images`: paths with what Reading.pixels gave for each. `side` is the transform's crop."""
        rows = [pixels.permute(1, 2, 0).numpy() for _, pixels in images if isinstance(pixels, torch.Tensor)]
        # By NumPy: PyTorch would share the copying out to threads.
        stacked = np.stack(rows) if rows else np.empty((0, side, side, 3), dtype=np.uint8)
        faults = {place: pixels for place, (_, pixels) in enumerate(images) if isinstance(pixels, str)}
        return cls(tuple(path for path, _ in images), torch.from_numpy(stacked).permute(0, 3, 1, 2), faults)


def start_early() -> None:
    """Let the server process that workers are forked from import what they need, while this one loads a model."""
    multiprocessing.set_forkserver_preload(["__main__", __name__])
    with _deaf_to_interrupts():
        multiprocessing.forkserver.ensure_running()


def batches(files: Sequence[str], reading: Reading, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """`files` in batches, in their order, by that many worker processes; for 0 by this one. Few batches at a time are
    in memory, however many files there are. Raises JobError when a worker dies."""
    loader: DataLoader[tuple[str, torch.Tensor | str]] = DataLoader(
        _Files(reading),
        batch_size=batch_size,
        # The paths themselves: workers keep no list of them.
        sampler=files,
        num_workers=workers,
        collate_fn=_Collation(reading.transform.crop),
        worker_init_fn=_begin_reading,
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=_AHEAD if workers else None,
    )
    if not workers:
        ignore_pillow_warnings()
    else:
        _check_shared_memory(workers * (_AHEAD + 1) * batch_size * 3 * reading.transform.crop**2)
        start_early()
    with _deaf_to_interrupts():
        loaded = iter(loader)
    while True:
        try:
            batch: Batch = next(loaded)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise JobError(f"a worker that reads files has died: {' '.join(str(error).split())}") from error
        yield batch


class _Files(Dataset[tuple[str, torch.Tensor | str]]):
    """Indexed by path."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def __getitem__(self, path: str) -> tuple[str, torch.Tensor | str]:
        return path, self._reading.pixels(path)


@dataclass(frozen=True, slots=True)
class _Collation:
    side: int

    def __call__(self, images: Sequence[tuple[str, torch.Tensor | str]]) -> Batch:
        return Batch.of(images, self.side)


def _begin_reading(_worker: int) -> None:
    """In a worker: let it not outlive the process that reads from it, however that ends. PyTorch's own watchdog looks
    at the parent, which is the server here, and the server waits for its workers."""
    ignore_pillow_warnings()

    def wait() -> None:
        reader = multiprocessing.parent_process()
        if reader is not None:
            reader.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _check_shared_memory(needed: int) -> None:
    """A worker that finds it full is killed by a signal, without a word."""
    try:
        there = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return
    free = there.f_bavail * there.f_frsize
    if free < needed:
        raise JobError(
            f"workers and batches need {needed / 1e6:.0f} MB of {_SHARED_MEMORY}, which has {free / 1e6:.0f} MB free: "
            "take fewer workers or smaller batches, or give a container more (docker run --shm-size)"
        )


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started here will not hear Ctrl-C, which a terminal sends to all of them: what becomes of
    them is for this one to decide."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)
