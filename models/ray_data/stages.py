"""What runs on the cluster: tasks that read and preprocess, actors that answer and write."""

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
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from models.hardware import cores
from models.images.decode import ignore_pillow_warnings
from models.interface.errors import JobError
from models.offline.reading import Batch, Reading
from models.offline.running import Runner
from models.offline.tables import ERROR, Columns, Task, check_answers
from models.ray_data.results import Results
from models.ray_data.storage import absolute, opened
from models.serving.model_instance import ServingOptions

# Files that a task reads at once, ahead of its decoding: an object store takes tens of ms for each.
_READ_AHEAD = 16

# Files that are read and answered as one: what a task of Ray's costs is shared by as many. Their pixels, 77 MB at
# 224 x 224, are what passes from task to actor, and Ray cuts what is over one and a half of its blocks into pieces,
# wherever that is in a batch. Their answers are held by the actor until they are written.
_STRETCH = 512
_STRETCH_BYTES = 128 * 2**20
_ANSWER_BYTES = 64 * 2**20

_STEP = pa.schema({"files": pa.int64(), "paths": pa.list_(pa.string()), "reasons": pa.list_(pa.string())})

Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Question:
    """What every machine must know of a job. `top_k` 0 asks for features."""

    task: Task
    top_k: int
    batch_size: int
    max_bytes: int
    options: ServingOptions


@dataclass(frozen=True, slots=True)
class ReadingAnywhere:
    """`reading`, of files that are named as in `folder`."""

    reading: Reading
    folder: str

    def encoded(self, path: str) -> bytes:
        return self.reading.encoded(opened(absolute(path, self.folder)))

    def pixels(self, paths: Sequence[str]) -> Iterator[torch.Tensor | str]:
        """As Reading.pixels, of each in turn, some of the next read meanwhile."""
        with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="read") as readers:
            coming = iter(paths)
            ahead: deque[Future[bytes]] = deque(
                readers.submit(self.encoded, path) for path in islice(coming, _READ_AHEAD)
            )
            while ahead:
                read = ahead.popleft()
                yield self.reading.pixels_of(read.result)
                ahead.extend(readers.submit(self.encoded, path) for path in islice(coming, 1))


def described(question: Question) -> tuple[Reading, Columns]:
    """How the model that actors will load wants its files read, and what its answers look like. In a process of the
    cluster: what is a driver here may have no GPU. A conversion that the model needs is made by the way. Raises
    StartError, also where the model has no answers to the task."""
    check = partial(check_answers, question.task)
    runner = Runner(question.options, batch_size=question.batch_size, check=check)
    runner.close()
    reading = Reading(runner.model.transform, question.options.limits, question.max_bytes)
    return reading, Columns.of(question.task, runner.model, question.top_k)


def pixels_of(rows: Rows, reading: ReadingAnywhere) -> Rows:
    """`rows` with pixels (N, crop, crop, 3) uint8, and fault, why there are none, or an empty text. A task's work."""
    cores.use_one_core_in_this_thread()
    ignore_pillow_warnings()
    side = reading.reading.transform.crop
    pixels = np.zeros((len(rows["path"]), side, side, 3), dtype=np.uint8)
    faults = [""] * len(pixels)
    for row, image in enumerate(reading.pixels([os.fsdecode(path) for path in rows["path"]])):
        if isinstance(image, str):
            faults[row] = image
        else:
            pixels[row] = image.permute(1, 2, 0).numpy()
    return {**rows, "pixels": pixels, "fault": np.array(faults, dtype=object)}


def stretch_files(batch_size: int, crop: int, row_bytes: int) -> int:
    """Files in a stretch, in whole batches, one at least: an image's last bits depend on the size of the batch it is
    in. `crop` is the side of a model's input, `row_bytes` as Columns has it."""
    fitting = min(_STRETCH, _STRETCH_BYTES // (3 * crop**2), _ANSWER_BYTES // row_bytes)
    return max(1, fitting // batch_size) * batch_size


class Forward:
    """An actor: has the model loaded, answers rows of pixels_of and writes what it has answered."""

    def __init__(self, question: Question, columns: Columns, results: Results) -> None:
        self._runner = Runner(question.options, batch_size=question.batch_size)
        self._batch_size = question.batch_size
        self._columns = columns
        self._results = results
        if self._runner.model.fingerprint != columns.fingerprint:
            raise JobError(
                f"the machines of the cluster are not alike: one has {columns.model} as {columns.fingerprint}, another "
                f"as {self._runner.model.fingerprint}"
            )

    def __call__(self, rows: Rows) -> pa.Table:
        """One row: how many files, and path and reason of each that could not be answered."""
        tables = [
            self._table({name: values[start : start + self._batch_size] for name, values in rows.items()})
            for start in range(0, len(rows["path"]), self._batch_size)
        ]
        table = pa.concat_tables(tables)
        # They follow one another: however Ray cuts the rows of a stretch up, it keeps their order.
        self._results.add(int(rows["index"][0]), table, self._columns)
        faults = table.filter(pc.is_valid(table[ERROR]))
        row = {"files": len(table), "paths": faults["path"].to_pylist(), "reasons": faults[ERROR].to_pylist()}
        return pa.Table.from_pylist([row], _STEP)

    def _table(self, rows: Rows) -> pa.Table:
        faults = {place: str(fault) for place, fault in enumerate(rows["fault"]) if fault}
        readable = np.array([place not in faults for place in range(len(rows["path"]))])
        batch = Batch(
            tuple(os.fsdecode(path) for path in rows["path"]),
            # A copy: what came from another process must not be written to, and PyTorch would not promise.
            torch.from_numpy(rows["pixels"][readable]).permute(0, 3, 1, 2),
            faults,
        )
        return self._columns.table(batch, self._runner.answer(batch.pixels, top_k=self._columns.top_k))
