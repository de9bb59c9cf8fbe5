"""The output of a job on a cluster: a folder of Parquet files, each whole and written by whoever has computed it.

    OUTPUT/
        _job.json                                 what was asked for: a run that asks for something else is refused
        000000000000-000000000512.parquet         answers to that stretch of the job's files
        _errors/000000000000-000000000512.jsonl   path and reason of those among them that have none

Readers of data sets in Parquet take the folder as one table; what begins with _ they leave alone.
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
from models.offline.formats import parquet_writer
from models.offline.parts import JOB, JobIdentity, range_name, range_of
from models.offline.tables import ERROR, Columns
from models.ray_data.storage import located

_NOTE = f"_{JOB}"
_SUFFIX = ".parquet"


@dataclass(frozen=True, slots=True)
class Results:
    """`place`: a URI, or a whole path that means the same on every machine."""

    place: str

    @property
    def errors(self) -> str:
        """Where the files without an answer are named."""
        return f"{self.place}/_errors"

    def check(self, *, resume: bool) -> None:
        """Raises JobError when there are results and it is not asked for to go on with them, or something else is
        there; and OSError."""
        filesystem, folder = located(self.place)
        names = _names(filesystem, folder)
        if _NOTE in names and not resume:
            raise JobError(f"{self.place} has what an earlier run has done: --resume goes on with it, or delete it")
        if names and _NOTE not in names:
            raise JobError(f"{self.place} has files that are no job's: name a folder that is empty, or new")

    def begin(self, asked: JobIdentity) -> None:
        """Raises JobError where there are results of another job, and OSError."""
        filesystem, folder = located(self.place)
        if _NOTE in _names(filesystem, folder):
            with filesystem.open_input_stream(f"{folder}/{_NOTE}") as file:
                asked.check(file.read().decode(), self.place)
            return
        filesystem.create_dir(folder)
        _write(filesystem, f"{folder}/{_NOTE}", asked.written().encode())

    def stretches(self) -> list[tuple[int, int]]:
        """What is done, as (start, stop) of the job's files, in their order."""
        return sorted(range_of(name) for name in _names(*located(self.place)) if name.endswith(_SUFFIX))

    def add(self, start: int, table: pa.Table, columns: Columns) -> None:
        """Write the rows, of Columns.schema_in_progress, of the files from `start` on. Once more changes nothing.
        Raises OSError."""
        filesystem, folder = located(self.place)
        name = range_name(start, start + len(table))
        answered = pc.is_null(table[ERROR])
        faults = table.filter(pc.invert(answered)).select(["path", ERROR]).to_pylist()
        _, errors = located(self.errors)
        if faults:
            filesystem.create_dir(errors)
            _write(
                filesystem, f"{errors}/{name}.jsonl", b"".join(json.dumps(fault).encode() + b"\n" for fault in faults)
            )
        elif f"{name}.jsonl" in _names(filesystem, errors):
            # Of somebody who was ended before the answers were there, to whom a file could not be read.
            filesystem.delete_file(f"{errors}/{name}.jsonl")
        file = BytesIO()
        with parquet_writer(file, columns) as writer:
            writer.write_table(table.filter(answered).select(columns.schema.names))
        # Last: the stretch is done when this is there.
        _write(filesystem, f"{folder}/{name}{_SUFFIX}", file.getvalue())

    def faults(self) -> int:
        """Files without an answer."""
        filesystem, folder = located(self.errors)
        count = 0
        for name in _names(filesystem, folder):
            with filesystem.open_input_stream(f"{folder}/{name}") as file:
                count += file.read().count(b"\n")
        return count


def left(files: int, done: list[tuple[int, int]], *, at_most: int) -> Iterator[tuple[int, int]]:
    """What is left to do of that many files, as (start, stop), where the stretches `done` are not to be done again.
    Cut at multiples of `at_most`, so that they are the same however often a job is interrupted."""
    start = 0
    for begun, ended in [*done, (files, files)]:
        while start < begun:
            stop = min(begun, start - start % at_most + at_most)
            yield start, stop
            start = stop
        start = max(start, ended)


def _names(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Of what is whole in `folder`: what begins with a dot was being written when somebody was ended."""
    found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return [info.base_name for info in found if not info.base_name.startswith(".")]


def _write(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Under its name there is never less than all of it: object stores keep nothing that is not ended, and on a disk
    it has another name until then."""
    local = isinstance(filesystem, fs.LocalFileSystem)
    folder, _, name = path.rpartition("/")
    unfinished = f"{folder}/.{name}.unfinished" if local else path
    with filesystem.open_output_stream(unfinished) as file:
        file.write(content)
    if local:
        filesystem.move(unfinished, path)
