"""A job over files on a Ray cluster: read, preprocess, run, write; and resume an interrupted run."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from models.hardware.cores import available_cores
from models.interface.errors import JobError
from models.offline.identity import identity_of, states_of
from models.offline.parts import remaining_chunks
from models.offline.running import Step
from models.ray_data.stages import Forward, RemoteJob, RemoteReading, chunk_files, describe, pixels_of
from models.ray_data.storage import Results, absolute

# CPU reservation of an actor. Decoding tasks reserve a core each; forwards use the time that those leave.
_ACTOR_CPUS = 0.5

_CONNECT_TIMEOUT_S = 10.0


class ClusterJob:
    """Connects to the cluster, loads the model there once to describe it, and prepares the output, on construction.

    `changed`: as of models.offline.job.FolderJob.
    """

    def __init__(self, job: RemoteJob, files: Sequence[str], output: str, *, address: str, resume: bool) -> None:
        """`files` come from models.ray_data.storage.find; `output` is a folder or its URI.

        Raises StartError, JobError included, and OSError if the output cannot be written.
        """
        self._job = job
        self._files = files
        here = os.getcwd()  # noqa: PTH109 - a string, like the names
        self._results = Results(absolute(output, here))
        # Checked before a cluster is started.
        self._results.check(resume=resume)
        connect(address)
        try:
            self._gpus = gpus_for(job.options.device)
            describe_remotely = ray.remote(describe).options(num_cpus=0, num_gpus=min(1, self._gpus))
            reading, self._columns = result_of(partial(ray.get, describe_remotely.remote(job)))
            self._reading = RemoteReading(reading, here)
            asked = identity_of(self._columns, reading, job.batch_size, files)
            self.changed = self._results.begin(asked, states_of(files))
            self._done_before = self._results.chunks()
        except BaseException:
            self.close()
            raise
        self.done = sum(stop - start for start, stop in self._done_before)

    @property
    def files(self) -> int:
        """Number of files of the job."""
        return len(self._files)

    @property
    def model(self) -> str:
        """Name of the model."""
        model: str = self._columns.model
        return model

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
        max_files = chunk_files(self._job.batch_size, self._reading.reading.transform.crop, self._columns.row_bytes)
        return remaining_chunks(self.files, self._done_before, max_files=max_files)

    def _chunk(self, start: int, stop: int) -> pa.Table:
        # Bytes: names of files need not be valid text.
        paths = [os.fsencode(path) for path in self._files[start:stop]]
        return pa.table({"index": pa.array(range(start, stop)), "path": pa.array(paths, pa.binary())})

    def _results_of(self, files: ray.data.Dataset) -> ray.data.Dataset:
        actors, cpus = actor_resources(self._gpus)
        return files.map_batches(
            pixels_of, fn_args=(self._reading,), batch_size=None, batch_format="numpy", num_cpus=1
        ).map_batches(
            Forward,
            fn_constructor_args=(self._job, self._columns, self._results),
            compute=ray.data.ActorPoolStrategy(size=actors),
            batch_size=None,
            batch_format="numpy",
            num_cpus=cpus,
            num_gpus=min(1, self._gpus),
        )


def connect(address: str) -> None:
    """Connect to `address`: `local` starts a cluster for this process alone, which ends with it; `auto` finds a running
    one. Raises JobError."""
    _check_address(address)
    # Ray sends usage statistics by default. A job over private images does not.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Errors arrive as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    own = {"num_cpus": available_cores(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(own if address == "local" else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise JobError(f"--ray {address}: {error}") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _check_address(address: str) -> None:
    """Check at once that the address answers, where Ray would retry for minutes. Raises JobError."""
    if address in {"local", "auto"}:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        raise JobError(f"--ray {address}: it must be local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise JobError(f"--ray {address} cannot be reached: {error}") from None


def gpus_for(device: str) -> int:
    """Return the number of GPUs of the cluster to use for forwards."""
    uses_gpus = device == "auto" or device.startswith("cuda")
    return int(ray.cluster_resources().get("GPU", 0)) if uses_gpus else 0


def actor_resources(gpus: int) -> tuple[int, float]:
    """Return (actors, CPU reservation of each): one actor per GPU, or per machine without GPUs."""
    cores = ray.cluster_resources().get("CPU", 0)
    machines = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    # On a single core a reservation would leave none for decoding.
    return gpus or max(1, machines), _ACTOR_CPUS if cores > 1 else 0


def result_of(work: Callable[[], Any]) -> Any:
    """Return the result of `work`, which waits for the cluster. Raises JobError for any error of the cluster."""
    try:
        return work()
    except ray.exceptions.RayTaskError as error:
        # The cause is the original exception. Ray's log has its traceback.
        cause = getattr(error, "cause", None) or error
        raise JobError(" ".join(str(cause).strip().splitlines()[-1].split())) from None
    except ray.exceptions.RayError as error:
        raise JobError(" ".join(str(error).split())) from None
