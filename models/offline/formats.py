"""Write a job's output from its parts, in one pass with one part in memory, and rename it when it is complete.

Rows are regrouped, so that the output is byte-identical wherever an earlier run was interrupted.
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

# Rows written at once, a row group in Parquet: 20 MB of features with 1280 dimensions. Feature maps have a hundred
# times as many dimensions; their groups have fewer rows.
_GROUP = 4096
_GROUP_BYTES = 64 * 2**20

Tables = Iterator[pa.Table]


def check(task: Task, output: Path) -> None:
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
        with _whole(errors) as file:
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
    """Write the vectors, (N, D) float32. The lines of out.npy.paths.jsonl have path and fingerprint of each row."""
    rows = 0
    with _whole(output) as file, _whole(sibling(output, "paths")) as paths:
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


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that is renamed to `path` when it is completely written."""
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
