"""A job's output: the formats in which it is written. Only Parquet needs an extra, `folders`.

The output is written from the job's parts in one pass with one part in memory, and renamed when it is complete. Rows
are regrouped, so that the output is byte-identical wherever an earlier run was interrupted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from models.interface.errors import JobError
from models.offline.parts import Parts, replacing
from models.offline.rows import Columns, Rows, Task

# Rows written at once, a row group in Parquet: 20 MB of features with 1280 dimensions. Feature maps have a hundred
# times as many dimensions; their groups have fewer rows.
_GROUP = 4096
_GROUP_BYTES = 64 * 2**20


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
    errors = sibling(output, "errors")
    faults = 0

    def answered() -> Iterator[Rows]:
        nonlocal faults
        for rows in parts.rows():
            found = rows.faults
            faults += len(found)
            file.writelines(_line({"path": path, "error": reason}) for path, reason in found)
            yield rows.answered()

    with replacing(errors) as file:
        _WRITERS[columns.task][output.suffix](_regrouped(answered(), _group(columns)), columns, output)
    if not faults:
        errors.unlink()
    return faults


def _group(columns: Columns) -> int:
    """Return the rows per group, which depends on the columns alone and not on the parts."""
    return max(1, min(_GROUP, _GROUP_BYTES // columns.row_bytes))


def _regrouped(parts: Iterator[Rows], group: int) -> Iterator[Rows]:
    """Yield the rows of all parts, `group` at a time."""
    held: Rows | None = None
    for rows in parts:
        held = rows if held is None else Rows.joined([held, rows])
        while len(held) >= group:
            yield held.between(0, group)
            held = held.between(group, len(held))
    if held is not None and len(held):
        yield held


def _parquet(groups: Iterator[Rows], columns: Columns, output: Path) -> None:
    # Not above: an extra.
    from models.offline import parquet  # noqa: PLC0415

    with replacing(output) as file, parquet.writer(file, columns) as writer:
        for rows in groups:
            writer.write_table(parquet.table_of(columns, rows), row_group_size=len(rows))


def _csv(groups: Iterator[Rows], columns: Columns, output: Path) -> None:
    """Write RFC 4180 with "\\n", text in quotes, and float32 numbers with the fewest digits that give them back."""
    with replacing(output) as file:
        file.write(_csv_lines([columns.names]))
        for rows in groups:
            file.write(_csv_lines(_values(rows, columns, list(rows.probabilities))))


def _csv_lines(rows: Iterable[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _jsonl(groups: Iterator[Rows], columns: Columns, output: Path) -> None:
    with replacing(output) as file:
        _write_lines(groups, columns, file)


def _npy(groups: Iterator[Rows], columns: Columns, output: Path) -> None:
    """Write the vectors, (N, D) float32. The lines of out.npy.paths.jsonl have path and fingerprint of each row."""
    count = 0
    with replacing(output) as file, replacing(sibling(output, "paths")) as paths:
        # The header has the same length for all counts of up to 20 digits: reserve it here, write it at the end.
        _npy_header(file, 0, columns.dimensions)
        for rows in groups:
            count += len(rows)
            file.write(rows.features.tobytes())
            _write_lines([rows], columns, paths)
        file.seek(0)
        _npy_header(file, count, columns.dimensions)


def _npy_header(file: IO[bytes], rows: int, dimensions: int) -> None:
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimensions)}
    np.lib.format.write_array_header_1_0(file, shape)


def _write_lines(groups: Iterable[Rows], columns: Columns, file: IO[bytes]) -> None:
    names = columns.names
    for rows in groups:
        values = _values(rows, columns, rows.probabilities.tolist())
        file.writelines(_line(dict(zip(names, row, strict=True))) for row in values)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _values(rows: Rows, columns: Columns, probabilities: list[Any]) -> Iterator[list[Any]]:
    """Yield the values of `columns.names` for each row, with `probabilities` in place of its own."""
    for path, indices, shares in zip(rows.paths, rows.indices.tolist(), probabilities, strict=True):
        values = [path, columns.fingerprint]
        for index, share in zip(indices, shares, strict=True):
            values += [columns.labels[index], index, share]
        yield values


_WRITERS: dict[Task, dict[str, Callable[[Iterator[Rows], Columns, Path], None]]] = {
    "classify": {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl},
    "features": {".parquet": _parquet, ".npy": _npy},
}
