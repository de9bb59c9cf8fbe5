"""Files of a job on a cluster, on local disks or by URI (s3:// and others), through the file systems of pyarrow.

The output is a folder of Parquet files, each written completely by the actor that computed it:

    OUTPUT/
        _job.json                                 the job's parameters: a run with others is refused
        _states.npy                               size and time of each local file when the job last began
        000000000000-000000000512.parquet         results of this chunk of the job's files
        _errors/000000000000-000000000512.jsonl   path and reason of each file in it that failed

Readers of Parquet data sets take the folder as one table and ignore names that begin with _.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from models.images.formats import SUFFIXES
from models.interface.errors import JobError
from models.offline import files, parquet
from models.offline.identity import JOB, Identity, changed_rows, check_same, written
from models.offline.parts import chunk_name, chunk_range
from models.offline.rows import Columns, Rows

_SCHEME = "://"
_NOTE = f"_{JOB}"
_STATES = "_states.npy"
_SUFFIX = ".parquet"


def find(paths: Sequence[str], report: Callable[[str], None] = lambda _: None) -> list[str]:
    """As models.offline.files.find, and also for URIs, whose folders are searched too. Raises JobError."""
    skipped = files.Skipped()
    found = (
        file for path in paths for file in (_under(path, skipped) if is_uri(path) else files.under(Path(path), skipped))
    )
    return files.checked(found, paths, skipped, report)


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


def _under(uri: str, skipped: files.Skipped) -> Iterator[str]:
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
        if any(part.startswith(".") for part in name.split("/")):
            # A store has no folders: files in hidden ones are counted instead.
            skipped.add("hidden file", name)
        elif files.ending(name) in SUFFIXES:
            yield f"{uri.rstrip('/')}/{name}"
        else:
            skipped.add_other(name)


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

    def begin(self, asked: Identity, states: NDArray[np.int64]) -> int:
        """Create the folder, or delete the chunks with files that changed since their results were written.

        `states` are those of the job's files now. Return the number of changed files. Raises JobError if the folder
        holds results of another job, and OSError.
        """
        filesystem, folder = located(self.location)
        changed = np.empty(0, dtype=np.intp)
        resumed = _NOTE in _names(filesystem, folder)
        if resumed:
            check_same(asked, _read(filesystem, f"{folder}/{_NOTE}").decode(), self.location)
            before = np.load(BytesIO(_read(filesystem, f"{folder}/{_STATES}")), allow_pickle=False)
            changed = changed_rows(before, states)
            for start, stop in self.chunks():
                if ((start <= changed) & (changed < stop)).any():
                    name = chunk_name(start, stop)
                    self._delete_errors(name)
                    filesystem.delete_file(f"{folder}/{name}{_SUFFIX}")
        else:
            filesystem.create_dir(folder)
        if not resumed or len(changed):
            file = BytesIO()
            np.save(file, states, allow_pickle=False)
            # After the chunks are deleted: a kill before this leaves the states that show the change.
            _write(filesystem, f"{folder}/{_STATES}", file.getvalue())
        if not resumed:
            _write(filesystem, f"{folder}/{_NOTE}", written(asked).encode())
        return len(changed)

    def chunks(self) -> list[tuple[int, int]]:
        """Return the finished chunks, as (start, stop) of the job's files, in their order."""
        return sorted(chunk_range(name) for name in _names(*located(self.location)) if name.endswith(_SUFFIX))

    def add(self, start: int, rows: Rows, columns: Columns) -> None:
        """Write a chunk: the rows of the files from `start` on. Writing it twice gives the same files. Raises
        OSError."""
        filesystem, folder = located(self.location)
        name = chunk_name(start, start + len(rows))
        lines = [json.dumps({"path": path, "error": reason}).encode() + b"\n" for path, reason in rows.faults]
        if lines:
            _, errors = located(self.errors)
            filesystem.create_dir(errors)
            _write(filesystem, f"{errors}/{name}.jsonl", b"".join(lines))
        else:
            # Left by an actor that failed to read a file and was killed before it wrote the results.
            self._delete_errors(name)
        file = BytesIO()
        with parquet.writer(file, columns) as writer:
            writer.write_table(parquet.table_of(columns, rows))
        # Written last: a chunk counts as done when its Parquet file exists.
        _write(filesystem, f"{folder}/{name}{_SUFFIX}", file.getvalue())

    def _delete_errors(self, chunk: str) -> None:
        filesystem, errors = located(self.errors)
        if f"{chunk}.jsonl" in _names(filesystem, errors):
            filesystem.delete_file(f"{errors}/{chunk}.jsonl")

    def faults(self) -> int:
        """Return how many files failed."""
        filesystem, folder = located(self.errors)
        count = 0
        for name in _names(filesystem, folder):
            with filesystem.open_input_stream(f"{folder}/{name}") as file:
                count += file.read().count(b"\n")
        return count


def _names(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Return the names of complete files in `folder`. Names with a leading dot were being written at a kill."""
    found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return [info.base_name for info in found if not info.base_name.startswith(".")]


def _read(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as file:
        content: bytes = file.read()
    return content


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
