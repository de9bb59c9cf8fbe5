"""Find the image files of a job, in a reproducible order. Needs the standard library alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.images.formats import SUFFIXES
from models.interface.errors import JobError


def find(paths: Sequence[Path]) -> list[str]:
    """Return each file of `paths` once, and for folders the files below them with an image suffix, sorted by name.

    Hidden files and folders are skipped; links are followed. A found path starts with the folder as it was given.
    Raises JobError for a path that does not exist or cannot be listed, and if there is no image at all.
    """
    # Strings, a fifth of the size of Path objects: there may be millions.
    found = dict.fromkeys(file for path in paths for file in _under(path))
    if not found:
        names = ", ".join(name(str(path)) for path in paths)
        raise JobError(f"there is no image in {names}; in a folder only files with the suffix of an image are read")
    return list(found)


def spread(files: Sequence[str], most: int) -> list[str]:
    """Return up to `most` of `files` at equal distances, so that each class has some if folders are classes."""
    step = max(1.0, len(files) / most)
    return [files[int(number * step)] for number in range(min(len(files), most))]


def name(path: str) -> str:
    """Return `path` for files and terminals: bytes that are not UTF-8 are escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


def _under(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from _in_folder(str(path), frozenset())
    elif path.exists():
        yield str(path)
    else:
        raise JobError(f"{name(str(path))} does not exist")


def _in_folder(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """`above` are device and inode of the parent folders: a link may lead back to one of them."""
    try:
        status = os.stat(folder)  # noqa: PTH116 - strings, not Path objects
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise JobError(f"{name(folder)} cannot be listed: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _in_folder(entry.path, above | {here})
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():  # noqa: PTH122
            yield entry.path
