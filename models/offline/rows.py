"""A job's answers as NumPy arrays: the columns of its output, and rows for consecutive files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray

from models.interface.errors import GradlessError, JobError
from models.offline import files

if TYPE_CHECKING:
    from models.inference.image_job import ItemOutput
    from models.loading.load import LoadedModel
    from models.offline.reading import Batch

Task = Literal["classify", "features"]


def check_answers(task: Task, model: LoadedModel) -> None:
    """Raise JobError if the model cannot do the task."""
    if task == "classify" and not model.network.classes:
        raise JobError(f"{model.name} has no classes; use `gradless features`")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a job's output.

    For `features`: path, fingerprint, and features, `dimensions` float32 numbers. For `classify`: path, fingerprint,
    then label_1, index_1, probability_1 of the top class, and so on up to `top_k`.
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
    def names(self) -> list[str]:
        """Names of all columns except `features`."""
        ranks = range(1, self.top_k + 1)
        return ["path", "fingerprint", *(f"{what}_{k}" for k in ranks for what in ("label", "index", "probability"))]

    @property
    def row_bytes(self) -> int:
        """Approximate size of an answer in memory, without names; at least 1."""
        return max(1, 4 * self.dimensions if self.task == "features" else 8 * self.top_k)


@dataclass(frozen=True, slots=True)
class Rows:
    """Answers to N files, in order.

    `paths` are text (models.offline.files.name). `errors` has a sentence for each file without an answer, else None.
    `indices` (N, top_k) int32 and `probabilities` (N, top_k) float32 are of the top classes, `features` is (N, D)
    float32; what is not of the task has no columns. Numbers of files without an answer are 0.
    """

    paths: list[str]
    errors: list[str | None]
    indices: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]

    @classmethod
    def of(cls, columns: Columns, batch: Batch, outputs: Sequence[ItemOutput | GradlessError]) -> Self:
        """Return a row per file of `batch`. `outputs` are those of the readable files."""
        answers = [answer for _, answer in batch.with_answers(outputs)]
        dimensions = columns.dimensions if columns.task == "features" else 0
        found = cls(
            [files.name(path) for path in batch.paths],
            [str(answer) if isinstance(answer, str | GradlessError) else None for answer in answers],
            np.zeros((len(answers), columns.top_k), dtype=np.int32),
            np.zeros((len(answers), columns.top_k), dtype=np.float32),
            np.zeros((len(answers), dimensions), dtype=np.float32),
        )
        for row, answer in enumerate(answers):
            if isinstance(answer, str | GradlessError):
                continue
            if dimensions:
                found.features[row] = answer.features
            else:
                found.indices[row], found.probabilities[row] = answer.indices, answer.probabilities
        return found

    @classmethod
    def joined(cls, rows: Sequence[Rows]) -> Self:
        """Return all rows of `rows`, at least one."""
        return cls(
            [path for each in rows for path in each.paths],
            [error for each in rows for error in each.errors],
            np.concatenate([each.indices for each in rows]),
            np.concatenate([each.probabilities for each in rows]),
            np.concatenate([each.features for each in rows]),
        )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def nbytes(self) -> int:
        """Approximate size in memory."""
        return sum(map(len, self.paths)) + self.indices.nbytes + self.probabilities.nbytes + self.features.nbytes

    @property
    def faults(self) -> tuple[tuple[str, str], ...]:
        """Path and reason of each file without an answer."""
        pairs = zip(self.paths, self.errors, strict=True)
        return tuple((path, error) for path, error in pairs if error is not None)

    def between(self, start: int, stop: int) -> Rows:
        """Return the rows from `start` to before `stop`."""
        place = slice(start, stop)
        return Rows(
            self.paths[place],
            self.errors[place],
            self.indices[place],
            self.probabilities[place],
            self.features[place],
        )

    def answered(self) -> Rows:
        """Return the rows that have an answer."""
        kept = [row for row, error in enumerate(self.errors) if error is None]
        if len(kept) == len(self):
            return self
        return Rows(
            [self.paths[row] for row in kept],
            [None] * len(kept),
            self.indices[kept],
            self.probabilities[kept],
            self.features[kept],
        )

    def save(self, file: IO[bytes], states: NDArray[np.int64]) -> None:
        """Write the rows as an .npz file, with `states`, one row for each."""
        np.savez(
            file,
            texts=np.frombuffer(json.dumps([self.paths, self.errors]).encode(), dtype=np.uint8),
            states=states,
            indices=self.indices,
            probabilities=self.probabilities,
            features=self.features,
        )


def rows_in(path: Path) -> Rows:
    """Return the rows that `Rows.save` wrote. Raises OSError."""
    with np.load(path, allow_pickle=False) as kept:
        paths, errors = json.loads(kept["texts"].tobytes())
        return Rows(paths, errors, kept["indices"], kept["probabilities"], kept["features"])


def states_in(path: Path) -> NDArray[np.int64]:
    """Return the states that `Rows.save` wrote, without reading the rows. Raises OSError."""
    with np.load(path, allow_pickle=False) as kept:
        states: NDArray[np.int64] = kept["states"]
        return states
