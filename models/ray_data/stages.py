"""What runs on the cluster: tasks that read and preprocess, and actors that run forwards and write results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from models.hardware import cores
from models.images.decode import ignore_pillow_warnings
from models.interface.errors import JobError
from models.offline.reading import Batch, Reading
from models.offline.rows import Columns, Rows, Task, check_answers
from models.offline.running import Runner
from models.ray_data.storage import Results, absolute, opened
from models.serving.model_instance import ServingOptions

# Concurrent reads of a task, ahead of its decoding: an object store takes tens of ms per file.
_READ_AHEAD = 16

# Files per chunk, which share the cost of a Ray task. Ray splits blocks above 1.5 times 128 MiB, also within a batch,
# so the pixels that pass from task to actor (77 MB at 224 x 224) stay below. Results stay in memory until written.
_MAX_CHUNK_FILES = 512
_CHUNK_PIXEL_BYTES = 128 * 2**20
_CHUNK_RESULT_BYTES = 64 * 2**20

_STEP = pa.schema({"files": pa.int64(), "paths": pa.list_(pa.string()), "reasons": pa.list_(pa.string())})

Block = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """The parameters of a job that every machine needs. A file above `max_bytes` gets no answer."""

    task: Task
    top_k: int
    batch_size: int
    max_bytes: int
    options: ServingOptions


@dataclass(frozen=True, slots=True)
class RemoteReading:
    """`reading` for files whose relative paths begin in `folder`."""

    reading: Reading
    folder: str

    def encoded(self, path: str) -> bytes:
        return self.reading.encoded(opened(absolute(path, self.folder)))

    def pixels(self, paths: Sequence[str]) -> Iterator[torch.Tensor | str]:
        """As Reading.pixels, in order; the next files are read in threads meanwhile."""
        with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="read") as readers:
            waiting = iter(paths)
            ahead: deque[Future[bytes]] = deque(
                readers.submit(self.encoded, path) for path in islice(waiting, _READ_AHEAD)
            )
            while ahead:
                read = ahead.popleft()
                yield self.reading.pixels_of(read.result)
                ahead.extend(readers.submit(self.encoded, path) for path in islice(waiting, 1))


def describe(job: RemoteJob) -> tuple[Reading, Columns]:
    """Return the preprocessing and the result columns of the model, which it loads.

    Runs on the cluster, because the driver's machine may have no GPU. It also converts the model, if the backend needs
    that. Raises StartError, also if the model cannot do the task.
    """
    check = partial(check_answers, job.task)
    runner = Runner(job.options, batch_size=job.batch_size, check=check)
    runner.close()
    reading = Reading(runner.model.transform, job.options.limits, job.max_bytes)
    return reading, Columns.of(job.task, runner.model, job.top_k)


def pixels_of(block: Block, reading: RemoteReading) -> Block:
    """Run as a Ray task: add pixels (N, crop, crop, 3) uint8, and fault, the reason of a failure or empty."""
    cores.use_one_core_in_this_thread()
    ignore_pillow_warnings()
    side = reading.reading.transform.crop
    pixels = np.zeros((len(block["path"]), side, side, 3), dtype=np.uint8)
    faults = [""] * len(pixels)
    for row, image in enumerate(reading.pixels([os.fsdecode(path) for path in block["path"]])):
        if isinstance(image, str):
            faults[row] = image
        else:
            pixels[row] = image.permute(1, 2, 0).numpy()
    return {**block, "pixels": pixels, "fault": np.array(faults, dtype=object)}


def chunk_files(batch_size: int, crop: int, row_bytes: int) -> int:
    """Return the number of files of a chunk: whole batches, because the last bits of a result depend on the batch size.

    `crop`: side of the model's input in pixels; `row_bytes`: of Columns.
    """
    fitting = min(_MAX_CHUNK_FILES, _CHUNK_PIXEL_BYTES // (3 * crop**2), _CHUNK_RESULT_BYTES // row_bytes)
    return max(1, fitting // batch_size) * batch_size


class Forward:
    """An actor: loads the model, runs the rows of `pixels_of` and writes the results."""

    def __init__(self, job: RemoteJob, columns: Columns, results: Results) -> None:
        self._runner = Runner(job.options, batch_size=job.batch_size)
        self._batch_size = job.batch_size
        self._columns = columns
        self._results = results
        if self._runner.model.fingerprint != columns.fingerprint:
            raise JobError(
                f"the machines of the cluster differ: one has {columns.model} with fingerprint {columns.fingerprint}, "
                f"another with {self._runner.model.fingerprint}; install the same versions on all of them"
            )

    def __call__(self, block: Block) -> pa.Table:
        """Write the results; return one row: the number of files, and path and reason of each that failed."""
        answers = [
            self._rows({name: values[start : start + self._batch_size] for name, values in block.items()})
            for start in range(0, len(block["path"]), self._batch_size)
        ]
        rows = Rows.joined(answers)
        # The rows are consecutive: Ray keeps their order when it splits a chunk.
        self._results.add(int(block["index"][0]), rows, self._columns)
        faults = rows.faults
        row = {
            "files": len(rows),
            "paths": [path for path, _ in faults],
            "reasons": [reason for _, reason in faults],
        }
        return pa.Table.from_pylist([row], _STEP)

    def _rows(self, block: Block) -> Rows:
        faults = {place: str(fault) for place, fault in enumerate(block["fault"]) if fault}
        readable = np.array([place not in faults for place in range(len(block["path"]))])
        batch = Batch(
            tuple(os.fsdecode(path) for path in block["path"]),
            # Indexing copies: arrays from Ray's object store are read-only, which PyTorch does not support.
            torch.from_numpy(block["pixels"][readable]).permute(0, 3, 1, 2),
            faults,
        )
        return Rows.of(self._columns, batch, self._runner.answer(batch.pixels, top_k=self._columns.top_k))
