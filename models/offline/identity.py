"""What two runs of a job must have in common to share results, and the states of its files, which may change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from models.interface.errors import JobError

if TYPE_CHECKING:
    from models.offline.reading import Reading
    from models.offline.rows import Columns

JOB = "job.json"


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """What two runs must have in common to share parts.

    This includes `batch_size`, on which the last bits of an answer depend, and the limits, which decide which images
    get an answer.
    """

    task: str
    model: str
    fingerprint: str
    top_k: int
    batch_size: int
    max_image_bytes: int
    max_image_pixels: int
    max_aspect_ratio: int
    max_decode_seconds: float
    max_decode_bytes: int
    files: int
    files_digest: str

    @classmethod
    def of(cls, columns: Columns, reading: Reading, batch_size: int, files: Sequence[str]) -> Self:
        """Return the identity of a job with these columns, options and files."""
        limits = reading.limits
        return cls(
            columns.task,
            columns.model,
            columns.fingerprint,
            columns.top_k,
            batch_size,
            reading.max_bytes,
            limits.max_pixels,
            limits.max_aspect_ratio,
            limits.max_decode_seconds,
            limits.max_decode_bytes,
            len(files),
            cls.digest(files),
        )

    @staticmethod
    def digest(files: Sequence[str]) -> str:
        """Return 16 hex digits of a SHA-256 over the names in order."""
        found = hashlib.sha256()
        for file in files:
            found.update(os.fsencode(file) + b"\0")
        return found.hexdigest()[:16]

    def written(self) -> str:
        """Return the identity as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def check(self, written: str, place: str) -> None:
        """Raise JobError unless `written`, found at `place`, is the identity of the same job."""
        try:
            before: dict[str, Any] = json.loads(written)
        except ValueError:
            raise JobError(f"{place}: its {JOB} cannot be read: delete the folder and start again") from None
        for name, now in asdict(self).items():
            if before.get(name) != now:
                what = name.replace("_", " ")
                raise JobError(
                    f"{place} was started with {what} {before.get(name)}, but this run has {now}: "
                    "use the same options, or delete the folder"
                )


def states_of(files: Sequence[str]) -> NDArray[np.int64]:
    """Return size in bytes and modification time in ns of each file, (N, 2); -1 for a missing one and for URIs."""
    states = np.full((len(files), 2), -1, dtype=np.int64)
    for row, file in enumerate(files):
        with suppress(OSError, ValueError):
            status = os.stat(file)  # noqa: PTH116 - strings, as there may be millions
            states[row] = status.st_size, status.st_mtime_ns
    return states


def changed_rows(before: NDArray[np.int64], now: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the rows in which two arrays of `states_of` differ, in order."""
    return np.flatnonzero((before != now).any(axis=1))
