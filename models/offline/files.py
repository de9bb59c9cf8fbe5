"""Which files a job is about, in an order that is the same each time. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.images.formats import SUFFIXES
from models.interface.errors import JobError


def find(paths: Sequence[Path]) -> list[str]:
    """The images among `paths`, each once: files as they are named, and what lies in folders and folders below them,
    sorted by name, where its suffix is an image's. Hidden files and folders are left out, links are followed.

    What is found in a folder begins with the folder as it was named. Raises JobError for a path that is not there or
    cannot be listed, and when there is no image at all.
    """
    # Strings, not paths: there may be millions, and each is a fifth of the size.
    found = dict.fromkeys(file for path in paths for file in _under(path))
    if not found:
        names = ", ".join(name(str(path)) for path in paths)
        raise JobError(f"there is no image in {names}; in folders, files that end like images are looked for")
    return list(found)


def spread(files: Sequence[str], most: int) -> list[str]:
    """`most` of `files` or fewer, at the same distance from one another: where folders are classes, some of each."""
    step = max(1.0, len(files) / most)
    return [files[int(number * step)] for number in range(min(len(files), most))]


def name(path: str) -> str:
    """`path` as it is written into files and on terminals: a name that is no UTF-8 has its stray bytes escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


def _under(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from _in_folder(str(path), frozenset())
    elif path.exists():
        yield str(path)
    else:
        raise JobError(f"{name(str(path))} is not there")


def _in_folder(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """`above`: device and inode of the folders on the way here, to which a link may lead back."""
    try:
        status = os.stat(folder)  # noqa: PTH116 - strings all the way, as below
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
