"""Files of a job on a cluster, on local disks or by URI (s3:// and others), through the file systems of pyarrow.

The output is a folder of Parquet files, each written completely by the actor that computed it:

    OUTPUT/
        _job.json                                 the job's parameters: a run with others is refused
        000000000000-000000000512.parquet         results of this chunk of the job's files
        _errors/000000000000-000000000512.jsonl   path and reason of each file in it that failed

Readers of Parquet data sets take the folder as one table and ignore names that begin with _.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from models.images.formats import SUFFIXES
from models.interface.errors import JobError
from models.offline import files
from models.offline.parts import JOB, JobIdentity, chunk_name, chunk_range
from models.offline.tables import ERROR, Columns, parquet_writer

_SCHEME = "://"
_NOTE = f"_{JOB}"
_SUFFIX = ".parquet"


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


@dataclass(frozen=True, slots=True)
class Results:
    """`location`: a URI, or an absolute path that means the same on every machine."""

    location: str

    @property
    def errors(self) -> str:
        """Path of the folder that lists the files that failed."""
        return f"{self.location}/_errors"

    def check(self, *, resume: bool) -> None:
        """Raise JobError if the folder holds results and `resume` is False, or holds other files; and OSError."""
        filesystem, folder = located(self.location)
        names = _names(filesystem, folder)
        if _NOTE in names and not resume:
            raise JobError(f"{self.location} has results of an earlier run: continue it with --resume, or delete them")
        if names and _NOTE not in names:
            raise JobError(f"{self.location} has files that are not a job's: name an empty or new folder")

    def begin(self, asked: JobIdentity) -> None:
        """Create the folder. Raises JobError if it holds results of another job, and OSError."""
        filesystem, folder = located(self.location)
        if _NOTE in _names(filesystem, folder):
            with filesystem.open_input_stream(f"{folder}/{_NOTE}") as file:
                asked.check(file.read().decode(), self.location)
            return
        filesystem.create_dir(folder)
        _write(filesystem, f"{folder}/{_NOTE}", asked.written().encode())

    def chunks(self) -> list[tuple[int, int]]:
        """Return the finished chunks, as (start, stop) of the job's files, in their order."""
        return sorted(chunk_range(name) for name in _names(*located(self.location)) if name.endswith(_SUFFIX))

    def add(self, start: int, table: pa.Table, columns: Columns) -> None:
        """Write a chunk: the rows, in Columns.schema_in_progress, of the files from `start` on. Writing it twice gives
        the same files. Raises OSError."""
        filesystem, folder = located(self.location)
        name = chunk_name(start, start + len(table))
        answered = pc.is_null(table[ERROR])
        faults = table.filter(pc.invert(answered)).select(["path", ERROR]).to_pylist()
        _, errors = located(self.errors)
        if faults:
            filesystem.create_dir(errors)
            _write(
                filesystem, f"{errors}/{name}.jsonl", b"".join(json.dumps(fault).encode() + b"\n" for fault in faults)
            )
        elif f"{name}.jsonl" in _names(filesystem, errors):
            # Left by an actor that failed to read a file and was killed before it wrote the results.
            filesystem.delete_file(f"{errors}/{name}.jsonl")
        file = BytesIO()
        with parquet_writer(file, columns) as writer:
            writer.write_table(table.filter(answered).select(columns.schema.names))
        # Written last: a chunk counts as done when its Parquet file exists.
        _write(filesystem, f"{folder}/{name}{_SUFFIX}", file.getvalue())

    def faults(self) -> int:
        """Return how many files failed."""
        filesystem, folder = located(self.errors)
        count = 0
        for name in _names(filesystem, folder):
            with filesystem.open_input_stream(f"{folder}/{name}") as file:
                count += file.read().count(b"\n")
        return count


def remaining_chunks(files: int, done: list[tuple[int, int]], *, max_files: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the chunks that remain of `files` files when the chunks `done` are finished.

    They are split at multiples of `max_files`, so that the chunks are the same after each interruption.
    """
    start = 0
    for begun, ended in [*done, (files, files)]:
        while start < begun:
            stop = min(begun, start - start % max_files + max_files)
            yield start, stop
            start = stop
        start = max(start, ended)


def _names(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Return the names of complete files in `folder`. Names with a leading dot were being written at a kill."""
    found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return [info.base_name for info in found if not info.base_name.startswith(".")]


def _write(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Write a file so that its name never shows incomplete content. Object stores drop unfinished uploads; on a disk
    the file has another name until it is complete."""
    local = isinstance(filesystem, fs.LocalFileSystem)
    folder, _, name = path.rpartition("/")
    unfinished = f"{folder}/.{name}.unfinished" if local else path
    with filesystem.open_output_stream(unfinished) as file:
        file.write(content)
    if local:
        filesystem.move(unfinished, path)
