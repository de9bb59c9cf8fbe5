"""From a job's parts to its output: in one pass, a part at a time in memory, and under its own name only when whole.

The rows are cut anew, so that an output does not depend on where a run was interrupted: it is the same to the byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from models.interface.errors import JobError
from models.offline.parts import Parts
from models.offline.tables import ERROR, Columns, Task

# Rows that are written at once, a row group in Parquet: 20 MB of features with 1280 dimensions. Of a map, which may
# have a hundred times as many, fewer.
_GROUP = 4096
_GROUP_BYTES = 64 * 2**20

Tables = Iterator[pa.Table]


def check(task: Task, output: Path) -> None:
    """Raises JobError for an ending that is no format of the task."""
    if output.suffix not in _WRITERS[task]:
        *others, last = _WRITERS[task]
        raise JobError(f"-o {output}: its ending must be one of {', '.join(others)} or {last}")
    if output.is_dir():
        raise JobError(f"-o {output} is a folder")


def beside(output: Path, what: str) -> Path:
    """out.parquet.errors.jsonl for `errors`: beside it, and another than that of out.csv."""
    return output.with_name(f"{output.name}.{what}.jsonl")


def write(parts: Parts, columns: Columns, output: Path) -> int:
    """Write the answers to `output`, and what could not be answered to out.parquet.errors.jsonl beside it, or no such
    file where there is nothing; how many that is. Raises OSError."""
    faults = sum(int(pc.count(table[ERROR]).as_py()) for table in parts.tables([ERROR]))
    errors = beside(output, "errors")
    if faults:
        with _whole(errors) as file:
            for table in parts.tables(["path", ERROR]):
                _write_lines(table.filter(pc.is_valid(table[ERROR])), file)
    else:
        errors.unlink(missing_ok=True)
    _WRITERS[columns.task][output.suffix](_answered(parts, _group(columns)), columns, output)
    return faults


def _group(columns: Columns) -> int:
    """Up to the columns alone, so that the rows are cut alike whatever the parts are."""
    return max(1, min(_GROUP, _GROUP_BYTES // columns.row_bytes))


def _answered(parts: Parts, group: int) -> Tables:
    """Rows with an answer, in tables of `group`."""
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
    """For the rows of a finished output."""
    names = [field.name for field in columns.schema]
    repeating = [name for name in names if name not in {"path", "features"} and not name.startswith("probability_")]
    return pq.ParquetWriter(file, columns.schema, compression="zstd", use_dictionary=repeating)


def _parquet(tables: Tables, columns: Columns, output: Path) -> None:
    with _whole(output) as file, parquet_writer(file, columns) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(columns.schema.metadata), row_group_size=len(table))


def _csv(tables: Tables, columns: Columns, output: Path) -> None:
    schema = pa.schema([_plain(field) for field in columns.schema])
    with _whole(output) as file, pyarrow.csv.CSVWriter(file, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def _jsonl(tables: Tables, _columns: Columns, output: Path) -> None:
    with _whole(output) as file:
        for table in tables:
            _write_lines(table, file)


def _npy(tables: Tables, columns: Columns, output: Path) -> None:
    """The vectors (N, D) float32; path and fingerprint of each are the lines of out.npy.paths.jsonl."""
    rows = 0
    with _whole(output) as file, _whole(beside(output, "paths")) as paths:
        # Once for the room, which is the same for all that fit into 20 digits, and once with the count.
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


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that has its name only when all of it is written."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


_WRITERS: dict[Task, dict[str, Callable[[Tables, Columns, Path], None]]] = {
    "classify": {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl},
    "features": {".parquet": _parquet, ".npy": _npy},
}
