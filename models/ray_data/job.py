"""A job over files on a Ray cluster: read, preprocess, run, write; and resume an interrupted run."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import ray
import ray.data

from models.offline.parts import JobIdentity
from models.offline.running import Step
from models.offline.tables import Task
from models.ray_data.cluster import actor_resources, connect, gpus_for, result_of
from models.ray_data.results import Results, remaining_chunks
from models.ray_data.stages import Forward, RemoteJob, RemoteReading, chunk_files, describe, pixels_of
from models.ray_data.storage import absolute
from models.serving.model_instance import ServingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterJobRequest:
    """What a job does. `files`: from models.ray_data.storage.find; `output`: a folder or its URI; `address`: of the
    cluster, as for ray.init; `max_bytes`: larger files are refused."""

    task: Task
    files: Sequence[str]
    output: str
    address: str
    top_k: int
    batch_size: int
    max_bytes: int
    resume: bool = False


class ClusterJob:
    """Connects to the cluster, loads the model there once to describe it, and prepares the output, on construction."""

    def __init__(self, request: ClusterJobRequest, options: ServingOptions) -> None:
        """Raises StartError, JobError included, and OSError if the output cannot be written."""
        self._request = request
        self._remote_job = RemoteJob(request.task, request.top_k, request.batch_size, request.max_bytes, options)
        here = os.getcwd()  # noqa: PTH109 - a string, like the names
        self._results = Results(absolute(request.output, here))
        # Checked before a cluster is started.
        self._results.check(resume=request.resume)
        connect(request.address)
        try:
            self._gpus = gpus_for(options.device)
            describe_remotely = ray.remote(describe).options(num_cpus=0, num_gpus=min(1, self._gpus))
            reading, self._columns = result_of(partial(ray.get, describe_remotely.remote(self._remote_job)))
            self._reading = RemoteReading(reading, here)
            asked = JobIdentity.of(self._columns, reading, request.batch_size, request.files)
            self._results.begin(asked)
            self._done_before = self._results.chunks()
        except BaseException:
            self.close()
            raise
        self.done = sum(stop - start for start, stop in self._done_before)

    @property
    def files(self) -> int:
        """Number of files of the job."""
        return len(self._request.files)

    @property
    def errors(self) -> str:
        """Path of the folder that lists the files that failed."""
        return self._results.errors

    def steps(self) -> Generator[Step, None, None]:
        """Run the remaining chunks of files, and yield a step for each as it is done. Closing the generator early keeps
        the chunks done so far. Raises JobError for any error of the cluster."""
        tables = [self._chunk(start, stop) for start, stop in self._remaining()]
        if not tables:
            return
        rows = iter(self._results_of(ray.data.from_arrow(tables)).iter_rows())
        while (row := result_of(partial(next, rows, None))) is not None:
            self.done += row["files"]
            yield Step(row["files"], tuple(zip(row["paths"], row["reasons"], strict=True)))

    def finish(self) -> int:
        """Return how many files failed, once all are done. Raises OSError."""
        return self._results.faults()

    def close(self) -> None:
        """Disconnect from the cluster. Finished chunks stay."""
        ray.shutdown()

    def _remaining(self) -> Iterator[tuple[int, int]]:
        max_files = chunk_files(self._request.batch_size, self._reading.reading.transform.crop, self._columns.row_bytes)
        return remaining_chunks(len(self._request.files), self._done_before, max_files=max_files)

    def _chunk(self, start: int, stop: int) -> pa.Table:
        # Bytes: names of files need not be valid text.
        paths = [os.fsencode(path) for path in self._request.files[start:stop]]
        return pa.table({"index": pa.array(range(start, stop)), "path": pa.array(paths, pa.binary())})

    def _results_of(self, files: ray.data.Dataset) -> ray.data.Dataset:
        actors, cpus = actor_resources(self._gpus)
        return files.map_batches(
            pixels_of, fn_args=(self._reading,), batch_size=None, batch_format="numpy", num_cpus=1
        ).map_batches(
            Forward,
            fn_constructor_args=(self._remote_job, self._columns, self._results),
            compute=ray.data.ActorPoolStrategy(size=actors),
            batch_size=None,
            batch_format="numpy",
            num_cpus=cpus,
            num_gpus=min(1, self._gpus),
        )
