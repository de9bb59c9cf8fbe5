"""A job over files: read, preprocess, run and write. A later run can resume where an earlier one stopped."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from models.offline import reading, tables
from models.offline.identity import identity_of, states_of
from models.offline.parts import Parts, finished_faults, record_finished
from models.offline.reading import Reading
from models.offline.rows import Columns, Rows, Task, check_answers
from models.offline.running import Runner, Step
from models.serving.model_instance import ServingOptions

# Most work that a kill loses, in files, seconds and bytes in memory.
_PART_FILES = 4096
_PART_S = 30.0
_PART_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Options of a job. `files` come from models.offline.files. A file above `max_bytes` gets no answer."""

    task: Task
    files: Sequence[str]
    output: Path
    top_k: int
    batch_size: int
    workers: int
    max_bytes: int
    resume: bool = False


class FolderJob:
    """Loads the model on construction, as the server does, and opens the parts. Not thread-safe."""

    def __init__(self, request: JobRequest, options: ServingOptions) -> None:
        """Raises StartError, including JobError, and OSError if the output cannot be written."""
        tables.check_output(request.task, request.output)
        self._request = request
        if request.workers:
            reading.start_fork_server()
        self._runner = Runner(options, batch_size=request.batch_size, check=partial(check_answers, request.task))
        model = self._runner.model
        self._columns = Columns.of(request.task, model, request.top_k)
        self._reading = Reading(model.transform, options.limits, request.max_bytes)
        self._identity = identity_of(self._columns, self._reading, request.batch_size, request.files)
        # Before any file is read: a file that changes during the run is done again by a later one.
        self._states = states_of(request.files)
        try:
            self._parts = Parts(request.output, self._identity, self._states, resume=request.resume)
        except BaseException:
            self._runner.close()
            raise
        again = request.resume and not self._parts.done
        # Not None if an earlier run has finished the job.
        self._faults = finished_faults(request.output, self._identity, self._states) if again else None

    @property
    def files(self) -> int:
        """Number of files of the job."""
        return len(self._request.files)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._columns.model

    @property
    def errors(self) -> Path:
        """The list of files without an answer."""
        return tables.sibling(self._request.output, "errors")

    @property
    def done(self) -> int:
        """Number of files that are done, including those of earlier runs."""
        return self._parts.done if self._faults is None else self.files

    @property
    def changed(self) -> int:
        """Number of files that changed after an earlier run had answered them, which are done again."""
        return self._parts.changed

    def steps(self) -> Generator[Step, None, None]:
        """Process the remaining files, one batch per step. Closing the generator early keeps finished batches.

        Raises JobError if a worker dies, OSError if the output cannot be written, ForwardError.
        """
        if self._faults is not None:
            return
        request = self._request
        # Every range except the last ends at the end of a batch.
        remaining = self._parts.remaining
        starts = (start for begun, ended in remaining for start in range(begun, ended, request.batch_size))
        left = [file for begun, ended in remaining for file in request.files[begun:ended]]
        batches = reading.batches(left, self._reading, batch_size=request.batch_size, workers=request.workers)
        pending = _Pending(self._parts)
        try:
            for start, batch in zip(starts, batches, strict=True):
                outputs = self._runner.answer(batch.pixels, top_k=self._columns.top_k)
                rows = Rows.of(self._columns, batch, outputs)
                pending.add(start, rows)
                yield Step(len(rows), rows.faults)
        finally:
            pending.write()

    def finish(self) -> int:
        """Write the output once all files are done. Return the number without an answer. Raises OSError."""
        if self._faults is None:
            self._faults = tables.write(self._parts, self._columns, self._request.output)
            record_finished(self._request.output, self._identity, self._states, self._faults)
        self._parts.remove()
        return self._faults

    def close(self) -> None:
        """Close the parts and end the backend's threads. Finished parts stay."""
        self._parts.close()
        self._runner.close()


class _Pending:
    """Answers that are not yet in a part: those of consecutive files."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rows: list[Rows] = []
        self._start = 0
        self._written_at = perf_counter()

    def add(self, start: int, rows: Rows) -> None:
        """Add the rows of the files from `start` on, and write a part if it is large or old enough. Raises OSError."""
        if start != self._start + sum(map(len, self._rows)):
            self.write()
            self._start = start
        self._rows.append(rows)
        if (
            sum(map(len, self._rows)) >= _PART_FILES
            or sum(each.nbytes for each in self._rows) >= _PART_BYTES
            or perf_counter() - self._written_at >= _PART_S
        ):
            self.write()

    def write(self) -> None:
        """Write what there is as a part. Raises OSError."""
        if self._rows:
            rows = Rows.joined(self._rows)
            self._parts.add(self._start, rows)
            self._rows = []
            self._start += len(rows)
        self._written_at = perf_counter()
