"""Answers as columns: what a row of a job's output is. Needs the extra `folders`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from models.inference.batch_item import ItemOutput
from models.interface.errors import GradlessError, JobError
from models.loading.load import LoadedModel
from models.offline import files
from models.offline.reading import Batch

Task = Literal["classify", "features"]

# What a job in progress has beside the columns of its output: why a file has no answer.
ERROR = "error"


def check_answers(task: Task, model: LoadedModel) -> None:
    """Raises JobError where the model has no answers to the task."""
    if task == "classify" and not model.network.classes:
        raise JobError(f"{model.name} has no classes to name; `gradless features` writes what it gives")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a job's output. `features`: path, fingerprint and features, a list of `dimensions` float32.
    `classify`: path and fingerprint, then label_1, index_1, probability_1 of the likeliest class, label_2 and so on to
    `top_k`. The schema's metadata name model and fingerprint."""

    task: Task
    model: str
    fingerprint: str
    labels: tuple[str, ...]
    dimensions: int
    top_k: int

    @classmethod
    def of(cls, task: Task, model: LoadedModel, top_k: int) -> Columns:
        """`top_k` is cut to the number of classes."""
        top_k = min(top_k, model.network.classes) if task == "classify" else 0
        return cls(task, model.name, model.fingerprint, model.labels, model.network.dimensions, top_k)

    @property
    def schema(self) -> pa.Schema:
        """Of the finished output."""
        metadata = {"gradless.model": self.model, "gradless.fingerprint": self.fingerprint}
        return pa.schema([*self._about_the_image, *self._answer], metadata)

    @property
    def schema_in_progress(self) -> pa.Schema:
        """`schema`, and the column that says why a file has no answer."""
        return self.schema.append(pa.field(ERROR, pa.string()))

    @property
    def row_bytes(self) -> int:
        """Of an answer in memory, names left out; 1 at least."""
        return max(1, 4 * self.dimensions if self.task == "features" else 12 * self.top_k)

    def table(self, batch: Batch, outputs: Sequence[ItemOutput | GradlessError]) -> pa.Table:
        """A row for each of the batch's files, of schema_in_progress. `outputs` are of those that could be read."""
        places = iter(outputs)
        rows = [batch.faults[place] if place in batch.faults else next(places) for place in range(len(batch.paths))]
        answered = [row if isinstance(row, ItemOutput) else None for row in rows]
        columns = [
            pa.array(map(files.name, batch.paths), pa.string()),
            pa.array([self.fingerprint] * len(rows), pa.string()).dictionary_encode(),
            *(self._features(answered) if self.task == "features" else self._classes(answered)),
            pa.array([None if isinstance(row, ItemOutput) else str(row) for row in rows], pa.string()),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema_in_progress)

    @property
    def _about_the_image(self) -> list[pa.Field]:
        return [pa.field("path", pa.string()), pa.field("fingerprint", pa.dictionary(pa.int32(), pa.string()))]

    @property
    def _answer(self) -> list[pa.Field]:
        if self.task == "features":
            return [pa.field("features", pa.list_(pa.float32(), self.dimensions))]
        kinds = {"label": pa.string(), "index": pa.int32(), "probability": pa.float32()}
        return [pa.field(f"{name}_{rank}", kind) for rank in range(1, self.top_k + 1) for name, kind in kinds.items()]

    def _features(self, answered: Sequence[ItemOutput | None]) -> list[pa.Array]:
        nothing = np.zeros(self.dimensions, dtype=np.float32)
        values = np.stack([nothing if output is None else output.features for output in answered])
        missing = pa.array([output is None for output in answered])
        flat = pa.array(values.reshape(-1))
        return [pa.FixedSizeListArray.from_arrays(flat, self.dimensions, mask=missing)]

    def _classes(self, answered: Sequence[ItemOutput | None]) -> list[pa.Array]:
        columns: list[pa.Array] = []
        for rank in range(self.top_k):
            scored = [None if output is None else _scored(output, rank) for output in answered]
            columns += [
                pa.array([score and self.labels[score[0]] for score in scored], pa.string()),
                pa.array([score and score[0] for score in scored], pa.int32()),
                pa.array([score and score[1] for score in scored], pa.float32()),
            ]
        return columns


def _scored(output: ItemOutput, rank: int) -> tuple[int, float]:
    """Class index and probability of the class at that rank."""
    if output.indices is None or output.probabilities is None:
        raise ValueError("classes were not asked for")
    return int(output.indices[rank]), float(output.probabilities[rank])
