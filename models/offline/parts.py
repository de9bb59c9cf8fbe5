"""What a job keeps between runs. If the process is killed, complete parts remain and a later run resumes after them.

out.parquet.parts/
    job.json                                  identity of the job: a run with other options is refused
    000000000000-000000004096.parquet         answers to that range of the job's files, including errors
.out.parquet.job.json                         record of a finished job: resuming it again does nothing
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """What two runs must have in common to share parts.

    This includes `batch_size`, on which the last bits of an answer depend, and the limits, which decide which images
    get an answer.
    """

    task: str
    model: str
    fingerprint: str
    top_k: int
    batch_size: int
    max_image_bytes: int
    max_image_pixels: int
    max_aspect_ratio: int
    max_decode_seconds: float
    max_decode_bytes: int
    files: int
    files_digest: str

    @classmethod
    def of(cls, columns: Columns, reading: Reading, batch_size: int, files: Sequence[str]) -> Self:
        """Return the identity of a job with these columns, options and files."""
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
            limits.max_decode_seconds,
            limits.max_decode_bytes,
            len(files),
            cls.digest(files),
        )

    @staticmethod
    def digest(files: Sequence[str]) -> str:
        """Return 16 hex digits of a SHA-256 over the names in order, and size and modification time of local files."""
        found = hashlib.sha256()
        for file in files:
            found.update(os.fsencode(file) + b"\0" + _changed(file) + b"\0")
        return found.hexdigest()[:16]

    def written(self) -> str:
        """Return the identity as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def check(self, written: str, place: str) -> None:
        """Raise JobError unless `written`, found at `place`, is the identity of the same job."""
        try:
            before: dict[str, Any] = json.loads(written)
        except ValueError:
            raise JobError(f"{place}: its {JOB} cannot be read: delete the folder and start again") from None
        for name, now in asdict(self).items():
            if before.get(name) != now:
                what = name.replace("_", " ")
                raise JobError(
                    f"{place} was started with {what} {before.get(name)}, but this run has {now}: "
                    "use the same options, or delete the folder"
                )


def _changed(file: str) -> bytes:
    try:
        status = os.stat(file)  # noqa: PTH116 - strings, as there may be millions
    except (OSError, ValueError):
        # Deleted, or not a local file.
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
    """The parts of one job, locked by one process at a time."""

    def __init__(self, output: Path, identity: JobIdentity, *, resume: bool) -> None:
        """Open or create the parts. With `resume`, existing parts are kept.

        Raises JobError if parts exist without `resume`, belong to another job, or are locked by another process; and
        OSError.
        """
        self.folder = output.with_name(output.name + ".parts")
        self.folder.mkdir(exist_ok=True)
        self._job: IO[str] = (self.folder / JOB).open("a+", encoding="utf-8")
        try:
            self._lock()
            # Left by a run that was killed while it removed its parts.
            shutil.rmtree(self._removed, ignore_errors=True)
            self._parts = _contiguous(self.folder)
            self._begin(identity, resume=resume)
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> int:
        """Number of files done, counted from the first one."""
        return self._parts[-1][1] if self._parts else 0

    def add(self, start: int, table: pa.Table) -> None:
        """Write the rows of the files from `start` on. Writing the same rows again has no effect. Raises OSError."""
        stop = start + table.num_rows
        with replacing(self._path(start, stop)) as file:
            # Not compressed: a part is read once and then deleted.
            pq.write_table(table, file, compression="none", use_dictionary=["fingerprint"])
        self._parts = [*(kept for kept in self._parts if kept[1] <= start), (start, stop)]

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield each part's rows, with one part in memory."""
        for part in self._parts:
            yield pq.read_table(self._path(*part), columns=columns)

    def remove(self) -> None:
        """Delete the parts, once the output is written."""
        # Rename first: a kill must not leave some of the parts, which a later run would resume from.
        self.folder.rename(self._removed)
        shutil.rmtree(self._removed)
        self.close()

    def close(self) -> None:
        """Release the lock."""
        self._job.close()

    def _path(self, start: int, stop: int) -> Path:
        return self.folder / f"{chunk_name(start, stop)}.parquet"

    @property
    def _removed(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.removed")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._job, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(f"another process is using {self.folder}") from None

    def _begin(self, identity: JobIdentity, *, resume: bool) -> None:
        if self._parts and not resume:
            raise JobError(f"{self.folder} has parts of an earlier run: resume with --resume, or delete the folder")
        if self._parts:
            self._job.seek(0)
            identity.check(self._job.read(), str(self.folder))
        self._remove_strays()
        if not self._parts:
            self._job.truncate(0)
            self._job.write(identity.written())
            self._job.flush()
            os.fsync(self._job.fileno())

    def _remove_strays(self) -> None:
        """Delete parts after a missing one: a later run must not resume from them."""
        kept = {self._path(*part) for part in self._parts}
        for path in _paths(self.folder):
            if path not in kept:
                path.unlink()


def _contiguous(folder: Path) -> list[tuple[int, int]]:
    """Return (start, stop) of the parts from the first file up to the first gap."""
    parts: list[tuple[int, int]] = []
    for path in _paths(folder):
        start, stop = chunk_range(path.name)
        if start != (parts[-1][1] if parts else 0):
            break
        parts.append((start, stop))
    return parts


def _paths(folder: Path) -> list[Path]:
    """Return the files of all parts, sorted by their first file."""
    return sorted(folder.glob("*-*.parquet"))


def record_finished(output: Path, job: JobIdentity, faults: int) -> None:
    """Record that `output` is complete, with `faults` files without an answer. Raises OSError."""
    record = {**asdict(job), **_file_state(output), "faults": faults}
    with replacing(_record_of(output)) as file:
        file.write(json.dumps(record, indent=2).encode())


def finished_faults(output: Path, job: JobIdentity) -> int | None:
    """Return the number of files without an answer in the `output` of an identical job.

    None if there is no output, or it belongs to another job or was changed."""
    try:
        kept: dict[str, Any] = json.loads(_record_of(output).read_text(encoding="utf-8"))
        same = {**asdict(job), **_file_state(output), "faults": kept["faults"]} == kept
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(kept["faults"]) if same else None


def _record_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.{JOB}")


def _file_state(output: Path) -> dict[str, int]:
    status = output.stat()
    return {"output_bytes": status.st_size, "output_modified_ns": status.st_mtime_ns}


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that is renamed to `path` when it is completely written."""
    unfinished = path.with_name(f".{path.name.removeprefix('.')}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
