"""A job over files: read, preprocess, run and write. A later run can resume where an earlier one stopped."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import pyarrow as pa

from models.offline import reading, tables
from models.offline.parts import JobIdentity, Parts, finished_faults, record_finished
from models.offline.reading import Reading
from models.offline.running import Runner, Step
from models.offline.tables import ERROR, Columns, Task, check_answers
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
        self._identity = JobIdentity.of(self._columns, self._reading, request.batch_size, request.files)
        try:
            self._parts = Parts(request.output, self._identity, resume=request.resume)
        except BaseException:
            self._runner.close()
            raise
        again = request.resume and not self._parts.done
        # Not None if an earlier run has finished the job.
        self._faults = finished_faults(request.output, self._identity) if again else None

    @property
    def files(self) -> int:
        """Number of files of the job."""
        return len(self._request.files)

    @property
    def errors(self) -> Path:
        """The list of files without an answer."""
        return tables.sibling(self._request.output, "errors")

    @property
    def done(self) -> int:
        """Number of files that are done, including those of earlier runs."""
        return self._parts.done if self._faults is None else self.files

    def steps(self) -> Generator[Step, None, None]:
        """Process the remaining files, one batch per step. Closing the generator early keeps finished batches.

        Raises JobError if a worker dies, OSError if the output cannot be written, ForwardError.
        """
        if self._faults is not None:
            return
        request = self._request
        pending: list[pa.Table] = []
        pending_from = self.done
        written_at = perf_counter()
        try:
            for batch in reading.batches(
                request.files[pending_from:], self._reading, batch_size=request.batch_size, workers=request.workers
            ):
                outputs = self._runner.answer(batch.pixels, top_k=self._columns.top_k)
                table = self._columns.table(batch, outputs)
                pending.append(table)
                if _is_a_part(pending) or perf_counter() - written_at >= _PART_S:
                    self._parts.add(pending_from, pa.concat_tables(pending))
                    pending = []
                    pending_from, written_at = self.done, perf_counter()
                yield Step(len(batch.paths), _faults(table))
        finally:
            if pending:
                self._parts.add(pending_from, pa.concat_tables(pending))

    def finish(self) -> int:
        """Write the output once all files are done. Return the number without an answer. Raises OSError."""
        if self._faults is None:
            self._faults = tables.write(self._parts, self._columns, self._request.output)
            record_finished(self._request.output, self._identity, self._faults)
        self._parts.remove()
        return self._faults

    def close(self) -> None:
        """Close the parts and end the backend's threads. Finished parts stay."""
        self._parts.close()
        self._runner.close()


def _is_a_part(pending: Sequence[pa.Table]) -> bool:
    return sum(map(len, pending)) >= _PART_FILES or sum(table.nbytes for table in pending) >= _PART_BYTES


def _faults(table: pa.Table) -> tuple[tuple[str, str], ...]:
    if table[ERROR].null_count == len(table):
        return ()
    pairs = zip(table["path"].to_pylist(), table[ERROR].to_pylist(), strict=True)
    return tuple((path, reason) for path, reason in pairs if reason is not None)
