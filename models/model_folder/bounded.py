"""The small files of a model folder, read up to a size that none needs: one that is larger, or is no file at all, would
take memory or time from what is served."""

from __future__ import annotations

import stat
from pathlib import Path

from models.interface.errors import ModelFolderError

MIB = 2**20


def read(file: Path, most_bytes: int) -> bytes:
    """What `file` holds. Raises FileNotFoundError, and ModelFolderError where it holds more than `most_bytes`, cannot
    be read, or is a pipe or a device."""
    try:
        # Opening a pipe would wait for whoever writes to it.
        if not stat.S_ISREG(file.stat().st_mode):
            raise ModelFolderError(file, "is not a regular file")
        with file.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelFolderError(file, f"cannot be read: {error.strerror}") from error
    if len(content) > most_bytes:
        raise ModelFolderError(file, f"is larger than {most_bytes // MIB} MiB, the most that is read of such a file")
    return content
