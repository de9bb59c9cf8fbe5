"""Build an index from a features file. The folder appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.hardware.cores import available_cores
from models.interface.errors import JobError
from models.search.features_file import FeaturesFile
from models.search.index import unit
from models.search.manifest import ROWS, VECTORS, Manifest, digests, is_index

if TYPE_CHECKING:
    import pyarrow as pa
    from usearch.index import Index

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

MakeThumbnails = Callable[[Sequence[str]], list[bytes | None]]


def build(
    features: FeaturesFile,
    folder: Path,
    *,
    make_thumbnails: MakeThumbnails | None = None,
    on_rows: Callable[[int], None] = lambda _rows: None,
    exact_rows: int = EXACT_ROWS,
) -> Manifest:
    """Build an index of `features` in `folder`, replacing an existing index.

    `on_rows` is called with the number of rows added. Queries of up to `exact_rows` rows compare all of them. Vectors
    and graph are in memory until they are written. Raises JobError.
    """
    if not features.rows:
        raise JobError("the features file has no rows")
    try:
        with _replacing(folder) as new:
            return _build(features, new, make_thumbnails, on_rows, exact_rows)
    except OSError as error:
        raise JobError(f"{folder} cannot be written: {error.strerror or error}") from error


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Create a temporary folder next to `folder`; rename it to `folder` if the block succeeds, else remove it."""
    if folder.exists() and not is_index(folder):
        raise JobError(f"{folder} exists and is no search index: choose another folder")
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    new.mkdir()
    try:
        yield new
        if folder.exists():
            # A process that has the old index open keeps its files until it closes them.
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _build(
    features: FeaturesFile,
    folder: Path,
    make_thumbnails: MakeThumbnails | None,
    on_rows: Callable[[int], None],
    exact_rows: int,
) -> Manifest:
    # Here, not above: an extra.
    import pyarrow as pa  # noqa: PLC0415
    from usearch.compiled import MetricKind, ScalarKind  # noqa: PLC0415
    from usearch.index import Index  # noqa: PLC0415

    exact = features.rows <= exact_rows
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
    with pa.OSFile(str(folder / ROWS), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for piece in features:
            first = len(index)
            keys = np.arange(first, first + len(piece.paths), dtype=np.uint64)
            index.add(keys, unit(piece.vectors), threads=available_cores())
            pictures = [None] * len(piece.paths) if make_thumbnails is None else make_thumbnails(piece.paths)
            with_thumbnail += sum(picture is not None for picture in pictures)
            writer.write_batch(_batch(piece.paths, pictures, schema))
            on_rows(len(piece.paths))
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
        digests=digests(folder),
    )
    manifest.write(folder)
    return manifest


def _batch(paths: list[str], pictures: Sequence[bytes | None], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa  # noqa: PLC0415 - as above

    return pa.record_batch([pa.array(paths, pa.string()), pa.array(pictures, pa.binary())], schema=schema)


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
