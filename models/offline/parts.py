"""A job's answers while it runs, in a folder beside its output: whatever ends the process, what is written there is
whole, and a later run goes on behind it.

    out.parquet.parts/
        job.json                                  what was asked for: a run that asks for something else is refused
        000000000000-000000004096.parquet         answers to that range of the job's files, faults among them
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from models.interface.errors import JobError

if TYPE_CHECKING:
    from models.offline.reading import Reading
    from models.offline.tables import Columns

JOB = "job.json"

# Its name until it is whole.
_UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class Asked:
    """What must be the same for parts of two runs to belong together. `batch_size` too: the last bits of an answer
    depend on the size of the batch it was in. The limits, of bytes, pixels and aspect ratio, say which images have an
    answer."""

    task: str
    model: str
    fingerprint: str
    top_k: int
    batch_size: int
    max_image_bytes: int
    max_image_pixels: int
    max_aspect_ratio: int
    files: int
    files_digest: str

    @classmethod
    def of(cls, columns: Columns, reading: Reading, batch_size: int, files: Sequence[str]) -> Self:
        """What a job asks for that reads `files` so, and has such answers."""
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
            len(files),
            cls.digest(files),
        )

    @staticmethod
    def digest(files: Sequence[str]) -> str:
        """16 hex digits of a SHA-256 over the names in their order, and of files on a disk size and time of change:
        what was written anew meanwhile has another answer."""
        found = hashlib.sha256()
        for file in files:
            found.update(os.fsencode(file) + b"\0" + _changed(file) + b"\0")
        return found.hexdigest()[:16]

    def written(self) -> str:
        """As JSON, for those who go on."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def check(self, written: str, place: str) -> None:
        """Raises JobError unless `written`, which was found at `place`, is of a job that asked for the same."""
        try:
            before: dict[str, Any] = json.loads(written)
        except ValueError:
            raise JobError(f"{place}: its {JOB} cannot be read: delete it and begin anew") from None
        for name, now in asdict(self).items():
            if before.get(name) != now:
                what = name.replace("_", " ")
                raise JobError(
                    f"{place} was begun with {what} {before.get(name)}, and this is {now}: "
                    "ask for what was asked for then, or delete it"
                )


def _changed(file: str) -> bytes:
    try:
        status = os.stat(file)  # noqa: PTH116 - strings, as there may be millions
    except (OSError, ValueError):
        # Not there any more, or not on a disk.
        return b""
    return b"%d %d" % (status.st_size, status.st_mtime_ns)


def chunk_name(start: int, stop: int) -> str:
    """Return the name, without suffix, of the file with the results of a job's files from `start` to before `stop`."""
    return f"{start:012}-{stop:012}"


def chunk_range(name: str) -> tuple[int, int]:
    """Return (start, stop) of a name from chunk_name; a suffix is ignored. Raises ValueError."""
    start, stop = name.partition(".")[0].split("-")
    return int(start), int(stop)


class Parts:
    """The parts of one job, open for one process at a time."""

    def __init__(self, output: Path, asked: Asked, *, resume: bool) -> None:
        """`resume`: go on with the parts that there are, if any. Raises JobError when there are some and it is not
        asked for, when they are of another job or another process is at work on them, and OSError."""
        self.folder = output.with_name(output.name + ".parts")
        self.folder.mkdir(exist_ok=True)
        self._job: IO[str] = (self.folder / JOB).open("a+", encoding="utf-8")
        try:
            self._lock()
            # Of a run that was ended while it cleared up.
            shutil.rmtree(self._aside, ignore_errors=True)
            self._parts = _in_a_row(self.folder)
            self._begin(asked, resume=resume)
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> int:
        """Files that have been dealt with, from the first on."""
        return self._parts[-1].stop if self._parts else 0

    def add(self, start: int, table: pa.Table) -> None:
        """Keep the rows of the files from `start` on. The same again changes nothing. Raises OSError."""
        part = _Part(self.folder, start, start + table.num_rows)
        unfinished = self.folder / _UNFINISHED
        with unfinished.open("wb") as file:
            # Read once more and thrown away: not worth the time that packing takes.
            pq.write_table(table, file, compression="none", use_dictionary=["fingerprint"])
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(part.path)
        self._parts = [*(kept for kept in self._parts if kept.stop <= start), part]

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Each part's rows, one part at a time in memory."""
        for part in self._parts:
            yield pq.read_table(part.path, columns=columns)

    def remove(self) -> None:
        """The output is there: nobody needs them."""
        # All of them in one step: what a kill leaves of a folder would be taken for a job's first or last parts.
        self.folder.rename(self._aside)
        shutil.rmtree(self._aside)
        self.close()

    def close(self) -> None:
        """Let others at them."""
        self._job.close()

    @property
    def _aside(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.removed")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._job, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(f"another process is at work in {self.folder}") from None

    def _begin(self, asked: Asked, *, resume: bool) -> None:
        if self._parts and not resume:
            raise JobError(f"{self.folder} has what an earlier run has done: --resume goes on with it, or delete it")
        if self._parts:
            self._job.seek(0)
            asked.check(self._job.read(), str(self.folder))
        self._remove_strays()
        if not self._parts:
            self._job.truncate(0)
            self._job.write(asked.written())
            self._job.flush()
            os.fsync(self._job.fileno())

    def _remove_strays(self) -> None:
        """Parts behind one that is missing: of whatever job they are, a later run must not go on with them."""
        kept = {part.path for part in self._parts}
        for path in _paths(self.folder):
            if path not in kept:
                path.unlink()


@dataclass(frozen=True, slots=True)
class _Part:
    folder: Path
    start: int
    stop: int

    @property
    def path(self) -> Path:
        return self.folder / f"{chunk_name(self.start, self.stop)}.parquet"


def _in_a_row(folder: Path) -> list[_Part]:
    """The parts from the first file on, as far as none is missing."""
    parts: list[_Part] = []
    for path in _paths(folder):
        start, stop = chunk_range(path.name)
        if start != (parts[-1].stop if parts else 0):
            break
        parts.append(_Part(folder, start, stop))
    return parts


def _paths(folder: Path) -> list[Path]:
    """Of all parts, by their first file."""
    return sorted(folder.glob("*-*.parquet"))
