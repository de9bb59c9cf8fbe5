"""What two runs of a job must have in common to share results, and the states of its files, which may change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.interface.errors import JobError

if TYPE_CHECKING:
    from models.offline.reading import Reading
    from models.offline.rows import Columns

JOB = "job.json"


# What two runs of a job must have in common to share results, for JSON.
Identity = dict[str, Any]


def identity_of(columns: Columns, reading: Reading, batch_size: int, files: Sequence[str]) -> Identity:
    """Return the identity of a job with these columns, options and files.

    It includes `batch_size`, on which the last bits of an answer depend, and the limits, which decide which images get
    an answer.
    """
    limits = reading.limits
    return {
        "task": columns.task,
        "model": columns.model,
        "fingerprint": columns.fingerprint,
        "top_k": columns.top_k,
        "batch_size": batch_size,
        "max_image_bytes": reading.max_bytes,
        "max_image_pixels": limits.max_pixels,
        "max_aspect_ratio": limits.max_aspect_ratio,
        "max_decode_seconds": limits.max_decode_seconds,
        "max_decode_bytes": limits.max_decode_bytes,
        "files": len(files),
        "files_digest": digest_of(files),
    }


def digest_of(files: Sequence[str]) -> str:
    """Return 16 hex digits of a SHA-256 over the names in order."""
    found = hashlib.sha256()
    for file in files:
        found.update(os.fsencode(file) + b"\0")
    return found.hexdigest()[:16]


def written(identity: Identity) -> str:
    """Return the content of a job's file JOB."""
    return json.dumps(identity, indent=2) + "\n"


def check_same(identity: Identity, found: str, place: str) -> None:
    """Raise JobError unless `found`, the content of JOB at `place`, is of the same job."""
    try:
        before: Identity = json.loads(found)
    except ValueError:
        raise JobError(f"{place}: its {JOB} cannot be read: delete the folder and start again") from None
    for name, now in identity.items():
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
