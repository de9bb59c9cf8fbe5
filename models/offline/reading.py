"""Read files into batches of pixels: a DataLoader whose workers preprocess images as the server does.

Workers are forked from a fork server that has imported what they need and has no other threads. A fork of this process,
with the threads of OpenVINO and PyTorch, could deadlock on a lock that one of those threads held.
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
from functools import partial
from io import BytesIO
from typing import IO, Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from models.images.decode import ignore_pillow_warnings
from models.images.preprocessing import Transform, decode_image, preprocess
from models.interface.errors import ImageError, ImageTooLargeError, JobError
from models.interface.request import ImageLimits

A = TypeVar("A")

# Batches that each worker prepares ahead.
_AHEAD = 2

# Workers pass tensors to this process through it.
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - no file of ours

_THUMBNAIL_QUALITY = 80


def read_file(path: str, max_bytes: int) -> bytes:
    """Return the contents of a file. Raises ImageTooLargeError, OSError."""
    # A string, not a Path: there may be millions.
    if os.stat(path).st_size > max_bytes:  # noqa: PTH116
        raise ImageTooLargeError(max_bytes)
    return _contents(open(path, "rb"), max_bytes)  # noqa: PTH123 - closed there


def _contents(file: IO[bytes], max_bytes: int) -> bytes:
    with file:
        encoded = file.read(max_bytes + 1)
    if len(encoded) > max_bytes:
        raise ImageTooLargeError(max_bytes)
    return encoded


def thumbnail(path: str, limits: ImageLimits, *, max_bytes: int, side: int) -> bytes | None:
    """Return a JPEG file of at most `side` x `side` pixels, or None if the file is missing or cannot be decoded."""
    try:
        pixels = decode_image(read_file(path, max_bytes), limits, enough=2 * side)
    except (ImageError, OSError):
        return None
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.thumbnail((side, side))
    file = BytesIO()
    picture.save(file, "JPEG", quality=_THUMBNAIL_QUALITY)
    return file.getvalue()


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read: the model's transform, and the server's limits."""

    transform: Transform
    limits: ImageLimits
    max_bytes: int

    def pixels(self, path: str) -> torch.Tensor | str:
        """Return the image as (3, crop, crop) uint8, channels last in memory, or a sentence that says why not.

        The reason is an error of the image, or of reading the file.
        """
        return self.pixels_of(lambda: read_file(path, self.max_bytes))

    def pixels_of(self, read: Callable[[], bytes]) -> torch.Tensor | str:
        """Do as `pixels` for the bytes that `read` returns, which may raise as `encoded` does."""
        try:
            return preprocess(read(), self.transform, self.limits)
        except ImageError as error:
            return str(error)
        except OSError as error:
            return f"The file cannot be read: {error.strerror or error}."

    def encoded(self, file: IO[bytes]) -> bytes:
        """Return the contents of an open file, and close it. Raises ImageTooLargeError, OSError."""
        return _contents(file, self.max_bytes)


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive files. `pixels`, (N, 3, crop, crop) uint8, channels last in memory, are of the readable ones.

    `faults` maps the position in `paths` of each other file to the reason.
    """

    paths: tuple[str, ...]
    pixels: torch.Tensor
    faults: dict[int, str]

    @classmethod
    def of(cls, images: Sequence[tuple[str, torch.Tensor | str]], side: int) -> Batch:
        """Build a batch of paths and the results of Reading.pixels. `side` is the transform's crop."""
        rows = [pixels.permute(1, 2, 0).numpy() for _, pixels in images if isinstance(pixels, torch.Tensor)]
        # NumPy, because PyTorch would use several threads for the copy.
        stacked = np.stack(rows) if rows else np.empty((0, side, side, 3), dtype=np.uint8)
        faults = {place: pixels for place, (_, pixels) in enumerate(images) if isinstance(pixels, str)}
        return cls(tuple(path for path, _ in images), torch.from_numpy(stacked).permute(0, 3, 1, 2), faults)

    def with_answers(self, answers: Sequence[A]) -> Iterator[tuple[str, A | str]]:
        """Yield each path with its answer, or its reason. `answers` are those of `pixels`, in order."""
        readable = iter(answers)
        for place, path in enumerate(self.paths):
            yield path, self.faults[place] if place in self.faults else next(readable)


def start_fork_server() -> None:
    """Start the fork server and its imports, while this process loads a model."""
    multiprocessing.set_forkserver_preload(["__main__", __name__])
    with _interrupts_ignored():
        multiprocessing.forkserver.ensure_running()


def batches(files: Sequence[str], reading: Reading, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """Yield `files` in batches, in order, read by `workers` processes, or by this process if 0.

    Only a few batches are in memory at a time. Raises JobError if a worker dies.
    """
    crop = reading.transform.crop
    if workers:
        _check_shared_memory(workers * (_AHEAD + 1) * batch_size * 3 * crop**2)
        start_fork_server()
    collate = partial(Batch.of, side=crop)
    yield from load(files, reading.pixels, workers=workers, batch_size=batch_size, collate=collate)


def load(
    files: Sequence[str],
    read: Callable[[str], Any],
    *,
    workers: int,
    context: Literal["fork", "forkserver"] = "forkserver",
    batch_size: int | None = None,
    collate: Callable[[Any], Any] = lambda pair: pair,
) -> Iterator[Any]:
    """Return an iterator over `collate` of each `batch_size` pairs of path and result of `read`, in order.

    Without `batch_size`, over the pairs. The workers start at once. The iterator raises JobError if one of them dies.
    """
    if not workers:
        ignore_pillow_warnings()
    loader: DataLoader[Any] = DataLoader(
        _Files(read),
        batch_size=batch_size,
        # Sampling the paths themselves keeps no list of them in the workers.
        sampler=files,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_begin_reading,
        multiprocessing_context=context if workers else None,
        prefetch_factor=_AHEAD if workers else None,
    )
    with _interrupts_ignored():
        return _with_job_errors(iter(loader))


def _with_job_errors(loaded: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from loaded
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise JobError(f"a worker that reads files has died: {' '.join(str(error).split())}") from error


class _Files(Dataset[Any]):
    """Pairs of path and result, indexed by path."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read

    def __getitem__(self, path: str) -> tuple[str, Any]:
        return path, self._read(path)


def _begin_reading(_worker: int) -> None:
    """End this worker when the process that reads from it ends.

    PyTorch's own watchdog watches the parent process, which here is the fork server, and that waits for its workers.
    """
    ignore_pillow_warnings()

    def wait() -> None:
        reader = multiprocessing.parent_process()
        if reader is not None:
            reader.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _check_shared_memory(needed: int) -> None:
    """Raise JobError if it is too small: a worker that finds it full is killed by a signal, without a message."""
    try:
        shared_memory = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return
    free = shared_memory.f_bavail * shared_memory.f_frsize
    if free < needed:
        raise JobError(
            f"workers and batches need {needed / 1e6:.0f} MB of {_SHARED_MEMORY}, which has {free / 1e6:.0f} MB free: "
            "use fewer workers or smaller batches, or increase it (docker run --shm-size)"
        )


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let processes started in the block ignore Ctrl-C, which a terminal sends to all of them: this one ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
