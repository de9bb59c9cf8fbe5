"""Find and open files on local disks or by URI (s3:// and others), through the file systems of pyarrow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow import fs

from models.images.formats import SUFFIXES
from models.interface.errors import JobError
from models.offline import files

_SCHEME = "://"


def find(paths: Sequence[str]) -> list[str]:
    """As models.offline.files.find, and also for URIs, whose folders are searched too. Raises JobError."""
    if not any(map(is_uri, paths)):
        return files.find([Path(path) for path in paths])
    found = dict.fromkeys(
        file for path in paths for file in (_under(path) if is_uri(path) else files.find([Path(path)]))
    )
    if not found:
        raise JobError(f"there is no image in {', '.join(paths)}: no file has the suffix of an image format")
    return list(found)


def is_uri(name: str) -> bool:
    return _SCHEME in name


def absolute(name: str, folder: str) -> str:
    """Return `name` for processes in other folders: a path resolved against `folder`, or an unchanged URI."""
    return name if is_uri(name) else str(Path(folder, name))


def opened(name: str) -> IO[bytes]:
    """Open a file for one sequential read. Raises OSError, and JobError for a URI without a file system."""
    if not is_uri(name):
        return open(name, "rb")  # noqa: PTH123 - the caller closes it; millions of Path objects cost memory
    filesystem, path = located(name)
    stream: IO[bytes] = filesystem.open_input_stream(path)
    return stream


def located(name: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of `name`, a URI or an absolute path, and the path in it. Raises JobError."""
    if not is_uri(name):
        return fs.LocalFileSystem(), name
    scheme, _, rest = name.partition(_SCHEME)
    authority, _, key = rest.partition("/")
    filesystem, root = _file_system(f"{scheme}{_SCHEME}{authority}/")
    return filesystem, f"{root.rstrip('/')}/{key}"


@lru_cache(maxsize=64)
def _file_system(uri: str) -> tuple[fs.FileSystem, str]:
    # Cached for its connections. The path is not part of `uri`, where it would need URI quoting.
    try:
        return fs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]  # pyarrow has no annotations
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise JobError(f"{uri} is not a file system that pyarrow supports: {error}") from None


def _under(uri: str) -> Iterator[str]:
    filesystem, path = located(uri)
    try:
        itself = filesystem.get_file_info(path)
        if itself.type == fs.FileType.File:
            yield uri
            return
        if itself.type == fs.FileType.NotFound:
            raise JobError(f"{uri} does not exist")
        listed = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise JobError(f"{uri} cannot be listed: {error}") from None
    below = [info.path[len(path.rstrip("/")) + 1 :] for info in listed if info.type == fs.FileType.File]
    # In the order of a directory walk.
    for name in sorted(below, key=lambda name: name.split("/")):
        if _is_image(name):
            yield f"{uri.rstrip('/')}/{name}"


def _is_image(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a string
