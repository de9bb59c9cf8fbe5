"""What a job keeps between runs. If the process is killed, complete parts remain and a later run resumes after them.

out.parquet.parts/
    job.json                                  identity of the job: a run with other options is refused
    000000000000-000000004096.npz             answers to that range of the job's files, and the files' states then
.out.parquet.job.json                         record of a finished job: resuming it again does nothing
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from models.interface.errors import JobError
from models.offline.identity import JOB, Identity, changed_rows, check_same, written
from models.offline.rows import Rows, rows_in, states_in


def chunk_name(start: int, stop: int) -> str:
    """Return the name, without suffix, of the file with the results of a job's files from `start` to before `stop`."""
    return f"{start:012}-{stop:012}"


def chunk_range(name: str) -> tuple[int, int]:
    """Return (start, stop) of a name from chunk_name; a suffix is ignored. Raises ValueError."""
    start, stop = name.partition(".")[0].split("-")
    return int(start), int(stop)


def remaining_chunks(files: int, done: Sequence[tuple[int, int]], *, max_files: int) -> Iterator[tuple[int, int]]:
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


class Parts:
    """The parts of one job, locked by one process at a time.

    `changed` is the number of files that were changed after an earlier run had answered them. The batches with these
    files are removed from the parts, to be done again.
    """

    def __init__(self, output: Path, identity: Identity, states: NDArray[np.int64], *, resume: bool) -> None:
        """Open or create the parts. With `resume`, existing parts are kept. `states` are those of the job's files.

        Raises JobError if parts exist without `resume`, belong to another job, or are locked by another process; and
        OSError.
        """
        self.folder = output.with_name(output.name + ".parts")
        self.changed = 0
        self._states = states
        self.folder.mkdir(exist_ok=True)
        self._job: IO[str] = (self.folder / JOB).open("a+", encoding="utf-8")
        try:
            self._lock()
            # Left by a run that was killed while it removed its parts.
            shutil.rmtree(self._removed, ignore_errors=True)
            self._parts = _disjoint(self.folder)
            self._begin(identity, resume=resume)
            for part in list(self._parts):
                self._remove_changed(part, identity["batch_size"])
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> int:
        """Number of files done."""
        return sum(stop - start for start, stop in self._parts)

    @property
    def remaining(self) -> list[tuple[int, int]]:
        """Ranges of files that are not done, as (start, stop)."""
        files = len(self._states)
        return list(remaining_chunks(files, self._parts, max_files=max(files, 1)))

    def add(self, start: int, rows: Rows) -> None:
        """Write the rows of the files from `start` on. Writing the same rows again has no effect. Raises OSError."""
        stop = start + len(rows)
        with replacing(self._path(start, stop)) as file:
            rows.save(file, self._states[start:stop])
        self._parts = sorted({*self._parts, (start, stop)})

    def rows(self) -> Iterator[Rows]:
        """Yield each part's rows, with one part in memory."""
        for part in self._parts:
            yield rows_in(self._path(*part))

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
        return self.folder / f"{chunk_name(start, stop)}.npz"

    @property
    def _removed(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.removed")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._job, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(f"another process is using {self.folder}") from None

    def _begin(self, identity: Identity, *, resume: bool) -> None:
        if self._parts and not resume:
            raise JobError(f"{self.folder} has parts of an earlier run: resume with --resume, or delete the folder")
        if self._parts:
            self._job.seek(0)
            check_same(identity, self._job.read(), str(self.folder))
        else:
            self._job.truncate(0)
            self._job.write(written(identity))
            self._job.flush()
            os.fsync(self._job.fileno())

    def _remove_changed(self, part: tuple[int, int], batch_size: int) -> None:
        """Replace a part by the runs of its batches whose files have not changed. Raises OSError.

        The whole batch is done again, because an answer's last bits depend on the other images of its batch.
        """
        start, stop = part
        changed = changed_rows(states_in(self._path(*part)), self._states[start:stop])
        if not len(changed):
            return
        self.changed += len(changed)
        rows = rows_in(self._path(*part))
        self._parts.remove(part)
        batches = [(batch, batch + batch_size) for batch in np.unique(changed // batch_size * batch_size).tolist()]
        for begun, ended in remaining_chunks(len(rows), batches, max_files=len(rows)):
            self.add(start + begun, rows.between(begun, ended))
        # Last: after a kill before this, the whole part is looked through again.
        self._path(*part).unlink()


def _disjoint(folder: Path) -> list[tuple[int, int]]:
    """Return (start, stop) of the parts in order, without those inside another, which a kill while parts were split
    has left."""
    parts: list[tuple[int, int]] = []
    found = (chunk_range(path.name) for path in folder.glob("*-*.npz"))
    for start, stop in sorted(found, key=lambda part: (part[0], -part[1])):
        if not parts or start >= parts[-1][1]:
            parts.append((start, stop))
    return parts


def record_finished(output: Path, job: Identity, states: NDArray[np.int64], faults: int) -> None:
    """Record that `output` is complete, with `faults` files without an answer. Raises OSError."""
    record = {**_record(output, job, states), "faults": faults}
    with replacing(_record_of(output)) as file:
        file.write(json.dumps(record, indent=2).encode())


def finished_faults(output: Path, job: Identity, states: NDArray[np.int64]) -> int | None:
    """Return the number of files without an answer in the `output` of an identical job.

    None if there is no output, or it belongs to another job or was changed, or a file of the job was."""
    try:
        found: dict[str, Any] = json.loads(_record_of(output).read_text(encoding="utf-8"))
        same = {**_record(output, job, states), "faults": found["faults"]} == found
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(found["faults"]) if same else None


def _record(output: Path, job: Identity, states: NDArray[np.int64]) -> dict[str, Any]:
    digest = hashlib.sha256(states.tobytes()).hexdigest()[:16]
    status = output.stat()
    state = {"output_bytes": status.st_size, "output_modified_ns": status.st_mtime_ns}
    return {**job, "states_digest": digest, **state}


def _record_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.{JOB}")


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


@contextmanager
def unfinished_folder(final: Path) -> Iterator[Path]:
    """Create a temporary folder next to `final`, and remove it at the end unless it was renamed."""
    # Not named by the process id, which is 1 in every container.
    folder = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
