"""The output of a job on a cluster: a folder of Parquet files, each written completely by the actor that computed it.

    OUTPUT/
        _job.json                                 the job's parameters: a run with others is refused
        000000000000-000000000512.parquet         results of this chunk of the job's files
        _errors/000000000000-000000000512.jsonl   path and reason of each file in it that failed

Readers of Parquet data sets take the folder as one table and ignore names that begin with _.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from models.interface.errors import JobError
from models.offline.parts import JOB, JobIdentity, chunk_name, chunk_range
from models.offline.tables import ERROR, Columns, parquet_writer
from models.ray_data.storage import located

_NOTE = f"_{JOB}"
_SUFFIX = ".parquet"


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
