"""Columns of a job's output. Needs the extra `folders`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from models.inference.image_job import ItemOutput
from models.interface.errors import GradlessError, JobError
from models.loading.load import LoadedModel
from models.offline import files
from models.offline.reading import Batch

Task = Literal["classify", "features"]

# Additional column of a job in progress: why a file has no answer.
ERROR = "error"


def check_answers(task: Task, model: LoadedModel) -> None:
    """Raise JobError if the model cannot do the task."""
    if task == "classify" and not model.network.classes:
        raise JobError(f"{model.name} has no classes; use `gradless features`")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a job's output.

    For `features`: path, fingerprint, and features, a list of `dimensions` float32. For `classify`: path, fingerprint,
    then label_1, index_1, probability_1 of the top class, and so on up to `top_k`. The schema's metadata has model and
    fingerprint.
    """

    task: Task
    model: str
    fingerprint: str
    labels: tuple[str, ...]
    dimensions: int
    top_k: int

    @classmethod
    def of(cls, task: Task, model: LoadedModel, top_k: int) -> Columns:
        """Return the columns for a model. `top_k` is limited to the number of classes."""
        top_k = min(top_k, model.network.classes) if task == "classify" else 0
        return cls(task, model.name, model.fingerprint, model.labels, model.network.dimensions, top_k)

    @property
    def schema(self) -> pa.Schema:
        """Schema of the finished output."""
        metadata = {"gradless.model": self.model, "gradless.fingerprint": self.fingerprint}
        return pa.schema([*self._about_the_image, *self._answer], metadata)

    @property
    def schema_in_progress(self) -> pa.Schema:
        """`schema` with the additional column ERROR."""
        return self.schema.append(pa.field(ERROR, pa.string()))

    @property
    def row_bytes(self) -> int:
        """Approximate size of an answer in memory, without names; at least 1."""
        return max(1, 4 * self.dimensions if self.task == "features" else 12 * self.top_k)

    def table(self, batch: Batch, outputs: Sequence[ItemOutput | GradlessError]) -> pa.Table:
        """Return a row of schema_in_progress per file. `outputs` are those of the readable files."""
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
    """Return index and probability of the class at `rank`, 0 for the top class."""
    if output.indices is None or output.probabilities is None:
        raise ValueError("the output has no classes")
    return int(output.indices[rank]), float(output.probabilities[rank])
