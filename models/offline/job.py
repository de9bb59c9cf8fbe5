"""A job over files, from their names to its output: read, preprocess, run, write, and all of it again from where an
earlier run was stopped."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import pyarrow as pa

from models.offline import finished, formats, reading
from models.offline.parts import Asked, Parts
from models.offline.reading import Reading
from models.offline.running import Runner
from models.offline.tables import ERROR, Columns, Task, check_answers
from models.serving.model_instance import ServingOptions

# Work that a kill loses, at most; and what is held of it in memory.
_PART_FILES = 4096
_PART_S = 30.0
_PART_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a job is to do. `files` as models.offline.files finds them; `max_bytes`: a larger file is no image."""

    task: Task
    files: Sequence[str]
    output: Path
    top_k: int
    batch_size: int
    workers: int
    max_bytes: int
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What a batch has brought: how many files were dealt with, and path and reason of each without an answer."""

    files: int
    faults: tuple[tuple[str, str], ...]


class FolderJob:
    """Loads the model on construction, as the service would, and opens the parts. One thread."""

    def __init__(self, wanted: Wanted, options: ServingOptions) -> None:
        """Raises StartError, which JobError is one of, and OSError where the output cannot be written."""
        formats.check(wanted.task, wanted.output)
        self._wanted = wanted
        if wanted.workers:
            reading.start_early()
        self._runner = Runner(options, batch_size=wanted.batch_size, check=partial(check_answers, wanted.task))
        model = self._runner.model
        self._columns = Columns.of(wanted.task, model, wanted.top_k)
        self._reading = Reading(model.transform, options.limits, wanted.max_bytes)
        self._asked = Asked.of(self._columns, self._reading, wanted.batch_size, wanted.files)
        try:
            self._parts = Parts(wanted.output, self._asked, resume=wanted.resume)
        except BaseException:
            self._runner.close()
            raise
        again = wanted.resume and not self._parts.done
        # Of an earlier run that has come to its end, of which nothing is left to do.
        self._faults = finished.faults(wanted.output, self._asked) if again else None

    @property
    def files(self) -> int:
        """Files that it is about."""
        return len(self._wanted.files)

    @property
    def errors(self) -> Path:
        """Where the files without an answer are named."""
        return formats.beside(self._wanted.output, "errors")

    @property
    def done(self) -> int:
        """Files whose answers are kept, those of earlier runs included."""
        return self._parts.done if self._faults is None else self.files

    def steps(self) -> Generator[Step, None, None]:
        """Do what is left to do, a batch a step. Closing it early keeps what is done.

        Raises JobError when a worker dies, OSError when the output cannot be written, ForwardError.
        """
        if self._faults is not None:
            return
        wanted = self._wanted
        held: list[pa.Table] = []
        held_from = self.done
        kept_at = perf_counter()
        try:
            for batch in reading.batches(
                wanted.files[held_from:], self._reading, batch_size=wanted.batch_size, workers=wanted.workers
            ):
                outputs = self._runner.answer(batch.pixels, top_k=self._columns.top_k)
                table = self._columns.table(batch, outputs)
                held.append(table)
                if _is_a_part(held) or perf_counter() - kept_at >= _PART_S:
                    self._parts.add(held_from, pa.concat_tables(held))
                    held = []
                    held_from, kept_at = self.done, perf_counter()
                yield Step(len(batch.paths), _faults(table))
        finally:
            if held:
                self._parts.add(held_from, pa.concat_tables(held))

    def finish(self) -> int:
        """Write the output, when all files are done; how many of them have no answer. Raises OSError."""
        if self._faults is None:
            self._faults = formats.write(self._parts, self._columns, self._wanted.output)
            finished.keep(self._wanted.output, self._asked, self._faults)
        self._parts.remove()
        return self._faults

    def close(self) -> None:
        """End what the job has open. What is done stays."""
        self._parts.close()
        self._runner.close()


def _is_a_part(held: Sequence[pa.Table]) -> bool:
    return sum(map(len, held)) >= _PART_FILES or sum(table.nbytes for table in held) >= _PART_BYTES


def _faults(table: pa.Table) -> tuple[tuple[str, str], ...]:
    if table[ERROR].null_count == len(table):
        return ()
    pairs = zip(table["path"].to_pylist(), table[ERROR].to_pylist(), strict=True)
    return tuple((path, reason) for path, reason in pairs if reason is not None)
