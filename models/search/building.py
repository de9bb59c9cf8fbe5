"""Build an index from a features file, as `gradless features` writes it. The folder appears complete or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.hardware.cores import available_cores, use_one_core_in_this_thread
from models.interface.errors import JobError
from models.offline.parts import unfinished_folder
from models.search.index import ROWS, VECTORS, Manifest, digests_of, is_index, unit

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from usearch.index import Index

# Rows in memory at once: each may get a thumbnail. Feature maps have hundreds of thousands of numbers per row, so the
# bytes are limited too.
_PIECE_ROWS = 1024
_PIECE_BYTES = 16 * 2**20

_COLUMNS = ("path", "fingerprint", "features")


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

    def __iter__(self) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Yield paths and vectors (N, D) of all rows in order, up to 1,024 or 16 MiB of vectors at a time."""
        rows = max(1, min(_PIECE_ROWS, _PIECE_BYTES // (4 * self.dimensions)))
        try:
            for batch in self._file.iter_batches(rows, columns=list(_COLUMNS)):
                yield self._piece(batch)
        except self._unreadable as error:
            raise JobError(f"{self._path} could not be read completely: {error}") from error

    def _piece(self, batch: pa.RecordBatch) -> tuple[list[str], NDArray[np.float32]]:
        if any(batch.column(column).null_count for column in _COLUMNS):
            raise JobError(f"{self._path} has rows without a path, a fingerprint or features")
        if others := set(batch.column("fingerprint").unique().to_pylist()) - {self.fingerprint}:
            raise JobError(
                f"{self._path} has vectors of {self.fingerprint} and of {others.pop()}, which cannot be compared"
            )
        vectors = batch.column("features").flatten().to_numpy().reshape(-1, self.dimensions)
        if not np.isfinite(vectors).all():
            raise JobError(f"{self._path} has features that are not finite")
        return batch.column("path").to_pylist(), vectors


# Up to this many vectors a query compares all: 6 ms for 10,000 of 1280 dimensions on one core.
EXACT_ROWS = 10_000

# Share of the ten nearest that a graph must find; the number of candidates doubles until it does.
_RECALL = 0.99
_NEAREST = 10
_FEWEST_CANDIDATES = 64
_MOST_CANDIDATES = 1024
_QUERIES = 200

# usearch always builds a graph. Exact queries ignore it, so few edges suffice: 1 s instead of 30 for 10,000 rows.
_LEAST_EDGES = 4


def build(
    features: FeaturesFile,
    folder: Path,
    *,
    thumbnail: Callable[[str], bytes | None] = lambda _path: None,
    on_rows: Callable[[int], None] = lambda _rows: None,
    exact_rows: int = EXACT_ROWS,
) -> Manifest:
    """Build an index of `features` in `folder`, replacing an existing index.

    `thumbnail` returns a JPEG file, or None, for a path. It is called in several threads. `on_rows` is called with the
    number of rows added. Queries of up to `exact_rows` rows compare all of them. Vectors and graph are in memory until
    they are written. Raises JobError.
    """
    if not features.rows:
        raise JobError("the features file has no rows")
    try:
        with _replacing(folder) as new:
            return _build(features, new, thumbnail, on_rows, exact=features.rows <= exact_rows)
    except OSError as error:
        raise JobError(f"{folder} cannot be written: {error.strerror or error}") from error


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Create a temporary folder next to `folder`; rename it to `folder` if the block succeeds, else remove it."""
    if folder.exists() and not is_index(folder):
        raise JobError(f"{folder} exists and is no search index: choose another folder")
    with unfinished_folder(folder) as new:
        old = new.with_name(f"{new.name}.old")
        yield new
        if folder.exists():
            # A process that has the old index open keeps its files until it closes them.
            folder.rename(old)
        new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _build(
    features: FeaturesFile,
    folder: Path,
    thumbnail: Callable[[str], bytes | None],
    on_rows: Callable[[int], None],
    *,
    exact: bool,
) -> Manifest:
    # Here, not above: an extra.
    import pyarrow as pa  # noqa: PLC0415
    from usearch.compiled import MetricKind, ScalarKind  # noqa: PLC0415
    from usearch.index import Index  # noqa: PLC0415

    # For vectors of length 1 the inner product is the cosine.
    index = Index(
        ndim=features.dimensions,
        metric=MetricKind.IP,
        dtype=ScalarKind.F32,
        connectivity=_LEAST_EDGES if exact else None,
        expansion_add=_LEAST_EDGES if exact else None,
    )
    schema = pa.schema([("path", pa.string()), ("thumbnail", pa.binary())])
    with_thumbnail = 0
    with (
        pa.OSFile(str(folder / ROWS), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
        ThreadPoolExecutor(available_cores(), initializer=use_one_core_in_this_thread) as threads,
    ):
        for paths, vectors in features:
            first = len(index)
            keys = np.arange(first, first + len(paths), dtype=np.uint64)
            index.add(keys, unit(vectors), threads=available_cores())
            pictures = list(threads.map(thumbnail, paths))
            with_thumbnail += sum(picture is not None for picture in pictures)
            columns = [pa.array(paths, pa.string()), pa.array(pictures, pa.binary())]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            on_rows(len(paths))
    expansion, recall = (_FEWEST_CANDIDATES, 1.0) if exact else _enough_candidates(index)
    index.save(str(folder / VECTORS))
    manifest = Manifest(
        model=features.model,
        fingerprint=features.fingerprint,
        dimensions=features.dimensions,
        rows=len(index),
        thumbnails=with_thumbnail,
        exact=exact,
        expansion=expansion,
        recall=recall,
        digests=digests_of(folder),
    )
    manifest.write(folder)
    return manifest


def _enough_candidates(index: Index) -> tuple[int, float]:
    """Return how many candidates a query needs to find enough of the ten nearest, and the share that it then finds.

    Queries are vectors of the index, whose own row is not counted.
    """
    rows = np.linspace(0, len(index) - 1, num=min(_QUERIES, len(index)), dtype=np.uint64)
    queries: NDArray[np.float32] = np.asarray(index.get(rows), dtype=np.float32)
    nearest = index.search(queries, _NEAREST + 1, exact=True, threads=available_cores()).keys
    candidates = _FEWEST_CANDIDATES
    while True:
        # usearch defines the setter apart from the getter, which mypy does not see.
        index.expansion_search = candidates  # type: ignore[misc]
        found = index.search(queries, _NEAREST + 1, threads=available_cores()).keys
        recall = _share_found(rows, nearest, found)
        if recall >= _RECALL or candidates >= _MOST_CANDIDATES:
            return candidates, recall
        candidates *= 2


def _share_found(rows: NDArray[np.uint64], nearest: NDArray[np.uint64], found: NDArray[np.uint64]) -> float:
    shares = []
    for row, expected, given in zip(rows.tolist(), nearest.tolist(), found.tolist(), strict=True):
        others = [each for each in expected if each != row][:_NEAREST]
        shares.append(len(set(others) & set(given)) / len(others))
    return float(np.mean(shares))
