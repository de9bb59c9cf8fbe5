"""Read a features file, as `gradless features` writes it, in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.interface.errors import JobError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Rows in memory at once: each may get a thumbnail. Feature maps have hundreds of thousands of numbers per row, so the
# bytes are limited too.
_PIECE_ROWS = 1024
_PIECE_BYTES = 16 * 2**20

_COLUMNS = ("path", "fingerprint", "features")


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows: paths, and vectors (N, D) float32."""

    paths: list[str]
    vectors: NDArray[np.float32]


class FeaturesFile:
    """A Parquet file with the columns path, fingerprint and features, a fixed-size list of float32, and the metadata
    gradless.model and gradless.fingerprint. Raises JobError for any other file, on opening or while reading."""

    def __init__(self, path: Path) -> None:
        # Not above: an extra.
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        self._path = path
        self._unreadable = (OSError, pa.ArrowException)
        try:
            self._file: pq.ParquetFile = pq.ParquetFile(path)
        except self._unreadable as error:
            raise JobError(f"{path} is no readable features file: {error}") from error
        schema = self._file.schema_arrow
        metadata = schema.metadata or {}
        if missing := [column for column in _COLUMNS if column not in schema.names]:
            raise JobError(f"{path} is no features file: it has no column {missing[0]!r}")
        if not {b"gradless.model", b"gradless.fingerprint"} <= set(metadata):
            raise JobError(f"{path} does not say which model made it; gradless features writes files that do")
        kind = schema.field("features").type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
            raise JobError(f"the features of {path} are {kind}, not lists of float32 of one size")
        self.dimensions: int = kind.list_size
        self.model = metadata[b"gradless.model"].decode()
        self.fingerprint = metadata[b"gradless.fingerprint"].decode()

    @property
    def rows(self) -> int:
        count: int = self._file.metadata.num_rows
        return count

    def __iter__(self) -> Iterator[Piece]:
        """Yield all rows in order, up to 1,024 or 16 MiB of vectors at a time, at least one row."""
        rows = max(1, min(_PIECE_ROWS, _PIECE_BYTES // (4 * self.dimensions)))
        try:
            for batch in self._file.iter_batches(rows, columns=list(_COLUMNS)):
                yield self._piece(batch)
        except self._unreadable as error:
            raise JobError(f"{self._path} could not be read completely: {error}") from error

    def _piece(self, batch: pa.RecordBatch) -> Piece:
        if any(batch.column(column).null_count for column in _COLUMNS):
            raise JobError(f"{self._path} has rows without a path, a fingerprint or features")
        if others := set(batch.column("fingerprint").unique().to_pylist()) - {self.fingerprint}:
            raise JobError(
                f"{self._path} has vectors of {self.fingerprint} and of {others.pop()}, which cannot be compared"
            )
        vectors = batch.column("features").flatten().to_numpy().reshape(-1, self.dimensions)
        if not np.isfinite(vectors).all():
            raise JobError(f"{self._path} has features that are not finite")
        return Piece(batch.column("path").to_pylist(), vectors)
