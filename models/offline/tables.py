"""A job's output: its columns, and the formats in which it is written. Needs the extra `folders`.

The output is written from the job's parts in one pass with one part in memory, and renamed when it is complete. Rows
are regrouped, so that the output is byte-identical wherever an earlier run was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from models.inference.image_job import ItemOutput
from models.interface.errors import GradlessError, JobError
from models.loading.load import LoadedModel
from models.offline import files
from models.offline.parts import Parts, replacing
from models.offline.reading import Batch

Task = Literal["classify", "features"]
Tables = Iterator[pa.Table]

# Additional column of a job in progress: why a file has no answer.
ERROR = "error"

# Rows written at once, a row group in Parquet: 20 MB of features with 1280 dimensions. Feature maps have a hundred
# times as many dimensions; their groups have fewer rows.
_GROUP = 4096
_GROUP_BYTES = 64 * 2**20


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
        image = [pa.field("path", pa.string()), pa.field("fingerprint", pa.dictionary(pa.int32(), pa.string()))]
        return pa.schema([*image, *self._answer], metadata)

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
        rows = [row for _, row in batch.with_answers(outputs)]
        answered = [row if isinstance(row, ItemOutput) else None for row in rows]
        columns = [
            pa.array(map(files.name, batch.paths), pa.string()),
            pa.array([self.fingerprint] * len(rows), pa.string()).dictionary_encode(),
            *(self._features(answered) if self.task == "features" else self._classes(answered)),
            pa.array([None if isinstance(row, ItemOutput) else str(row) for row in rows], pa.string()),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema_in_progress)

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


def check_output(task: Task, output: Path) -> None:
    """Raise JobError if the suffix is no format of the task."""
    if output.suffix not in _WRITERS[task]:
        *others, last = _WRITERS[task]
        raise JobError(f"-o {output}: its suffix must be one of {', '.join(others)} or {last}")
    if output.is_dir():
        raise JobError(f"-o {output} is a folder")


def sibling(output: Path, what: str) -> Path:
    """Return the path of a file next to `output`: out.parquet.errors.jsonl for `errors`."""
    return output.with_name(f"{output.name}.{what}.jsonl")


def write(parts: Parts, columns: Columns, output: Path) -> int:
    """Write the answers to `output`, and the files without an answer to out.parquet.errors.jsonl, if there are any.

    Return the number of files without an answer. Raises OSError.
    """
    faults = sum(int(pc.count(table[ERROR]).as_py()) for table in parts.tables([ERROR]))
    errors = sibling(output, "errors")
    if faults:
        with replacing(errors) as file:
            for table in parts.tables(["path", ERROR]):
                _write_lines(table.filter(pc.is_valid(table[ERROR])), file)
    else:
        errors.unlink(missing_ok=True)
    _WRITERS[columns.task][output.suffix](_answered(parts, _group(columns)), columns, output)
    return faults


def _group(columns: Columns) -> int:
    """Return the rows per group, which depends on the columns alone and not on the parts."""
    return max(1, min(_GROUP, _GROUP_BYTES // columns.row_bytes))


def _answered(parts: Parts, group: int) -> Tables:
    """Yield the rows with an answer, in tables of `group` rows."""
    held: pa.Table | None = None
    for part in parts.tables():
        rows = part.filter(pc.is_null(part[ERROR])).drop_columns([ERROR])
        held = rows if held is None else pa.concat_tables([held, rows])
        while len(held) >= group:
            yield held.slice(0, group).combine_chunks()
            held = held.slice(group)
    if held is not None and len(held):
        yield held.combine_chunks()


def parquet_writer(file: IO[bytes], columns: Columns) -> pq.ParquetWriter:
    """Return the writer for the rows of a finished output."""
    names = [field.name for field in columns.schema]
    repeating = [name for name in names if name not in {"path", "features"} and not name.startswith("probability_")]
    return pq.ParquetWriter(file, columns.schema, compression="zstd", use_dictionary=repeating)


def _parquet(tables: Tables, columns: Columns, output: Path) -> None:
    with replacing(output) as file, parquet_writer(file, columns) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(columns.schema.metadata), row_group_size=len(table))


def _csv(tables: Tables, columns: Columns, output: Path) -> None:
    schema = pa.schema([_plain(field) for field in columns.schema])
    with replacing(output) as file, pyarrow.csv.CSVWriter(file, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def _jsonl(tables: Tables, _columns: Columns, output: Path) -> None:
    with replacing(output) as file:
        for table in tables:
            _write_lines(table, file)


def _npy(tables: Tables, columns: Columns, output: Path) -> None:
    """Write the vectors, (N, D) float32. The lines of out.npy.paths.jsonl have path and fingerprint of each row."""
    rows = 0
    with replacing(output) as file, replacing(sibling(output, "paths")) as paths:
        # The header has the same length for all counts of up to 20 digits: reserve it here, write it at the end.
        _npy_header(file, 0, columns.dimensions)
        for table in tables:
            rows += len(table)
            file.write(table["features"].combine_chunks().flatten().to_numpy().tobytes())
            _write_lines(table.drop_columns(["features"]), paths)
        file.seek(0)
        _npy_header(file, rows, columns.dimensions)


def _npy_header(file: IO[bytes], rows: int, dimensions: int) -> None:
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimensions)}
    np.lib.format.write_array_header_1_0(file, shape)


def _write_lines(table: pa.Table, file: IO[bytes]) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in table.to_pylist())


def _plain(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


_WRITERS: dict[Task, dict[str, Callable[[Tables, Columns, Path], None]]] = {
    "classify": {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl},
    "features": {".parquet": _parquet, ".npy": _npy},
}
