"""A job over files on a Ray cluster, from their names to its output: read and preprocess, run, write; and all of it
again from where an earlier run was stopped."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import ray
import ray.data

from models.offline.job import Step
from models.offline.parts import JobIdentity
from models.offline.tables import Task
from models.ray_data.cluster import connect, gpus_for, outcome, room_for_actors
from models.ray_data.results import Results, left
from models.ray_data.stages import Forward, Question, ReadingAnywhere, described, pixels_of, stretch_files
from models.ray_data.storage import absolute
from models.serving.model_instance import ServingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterJobRequest:
    """What a job is asked to do. `files`: as models.ray_data.storage.find returns them; `output`: a folder or its URI;
    `address`: as ray.init takes it; `max_bytes`: a larger file is refused."""

    task: Task
    files: Sequence[str]
    output: str
    address: str
    top_k: int
    batch_size: int
    max_bytes: int
    resume: bool = False


class ClusterJob:
    """Connects to the cluster on construction, has a model loaded there once to know it, and begins the output."""

    def __init__(self, wanted: ClusterJobRequest, options: ServingOptions) -> None:
        """Raises StartError, which JobError is one of, and OSError where the output cannot be written."""
        self._wanted = wanted
        self._question = Question(wanted.task, wanted.top_k, wanted.batch_size, wanted.max_bytes, options)
        here = os.getcwd()  # noqa: PTH109 - a string, like the names
        self._results = Results(absolute(wanted.output, here))
        # Before a cluster is bothered.
        self._results.check(resume=wanted.resume)
        connect(wanted.address)
        try:
            self._gpus = gpus_for(options.device)
            describe = ray.remote(described).options(num_cpus=0, num_gpus=min(1, self._gpus))
            reading, self._columns = outcome(partial(ray.get, describe.remote(self._question)))
            self._reading = ReadingAnywhere(reading, here)
            asked = JobIdentity.of(self._columns, reading, wanted.batch_size, wanted.files)
            self._results.begin(asked)
            self._done_before = self._results.stretches()
        except BaseException:
            self.close()
            raise
        self.done = sum(stop - start for start, stop in self._done_before)

    @property
    def files(self) -> int:
        """Files that it is about."""
        return len(self._wanted.files)

    @property
    def errors(self) -> str:
        """Where the files without an answer are named."""
        return self._results.errors

    def steps(self) -> Generator[Step, None, None]:
        """Do what is left to do, a stretch of files a step, in the order in which they are done. Closing it early keeps
        what is done. Raises JobError for whatever goes wrong on the cluster."""
        tables = [self._stretch(start, stop) for start, stop in self._left()]
        if not tables:
            return
        rows = iter(self._answered(ray.data.from_arrow(tables)).iter_rows())
        while (row := outcome(partial(next, rows, None))) is not None:
            self.done += row["files"]
            yield Step(row["files"], tuple(zip(row["paths"], row["reasons"], strict=True)))

    def finish(self) -> int:
        """When all files are done: how many of them have no answer. Raises OSError."""
        return self._results.faults()

    def close(self) -> None:
        """Leave the cluster. What is done stays."""
        ray.shutdown()

    def _left(self) -> Iterator[tuple[int, int]]:
        at_most = stretch_files(self._wanted.batch_size, self._reading.reading.transform.crop, self._columns.row_bytes)
        return left(len(self._wanted.files), self._done_before, at_most=at_most)

    def _stretch(self, start: int, stop: int) -> pa.Table:
        # As bytes: names of files need not be text.
        paths = [os.fsencode(path) for path in self._wanted.files[start:stop]]
        return pa.table({"index": pa.array(range(start, stop)), "path": pa.array(paths, pa.binary())})

    def _answered(self, files: ray.data.Dataset) -> ray.data.Dataset:
        actors, cpus = room_for_actors(self._gpus)
        return files.map_batches(
            pixels_of, fn_args=(self._reading,), batch_size=None, batch_format="numpy", num_cpus=1
        ).map_batches(
            Forward,
            fn_constructor_args=(self._question, self._columns, self._results),
            compute=ray.data.ActorPoolStrategy(size=actors),
            batch_size=None,
            batch_format="numpy",
            num_cpus=cpus,
            num_gpus=min(1, self._gpus),
        )
