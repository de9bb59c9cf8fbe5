"""An index, opened: neighbours of vectors, and what is known of each row.

By usearch: vectors and their graph are one file, mapped into memory and read where a query goes; it has no OpenMP of
its own, whose threads would compete with PyTorch's.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from models.interface.errors import SearchIndexError
from models.search.manifest import ROWS, VECTORS, Manifest

if TYPE_CHECKING:
    import pyarrow as pa
    from usearch.index import Index


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A row of the index, the cosine in -1..1 of the angle between its vector and the one that was asked about, and
    whether the index keeps a picture of it."""

    row: int
    path: str
    similarity: float
    thumbnail: bool


def installed() -> bool:
    """Whether the extra `search` is there."""
    return all(importlib.util.find_spec(module) is not None for module in ("pyarrow", "usearch"))


class SearchIndex:
    """Read only; its methods may be called from several threads."""

    def __init__(self, folder: Path, manifest: Manifest, vectors: Index, rows: pa.Table) -> None:
        self._folder = folder
        self.manifest = manifest
        self._vectors = vectors
        # One lookup at a time, whoever asks: more would take decoders their cores.
        self._turn = threading.Lock()
        self._paths = rows.column("path")
        self._thumbnails = rows.column("thumbnail")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The index in `folder`, each byte of it checked first. Raises SearchIndexError."""
        # Here, not above: an extra.
        import pyarrow as pa  # noqa: PLC0415
        from usearch.index import Index  # noqa: PLC0415

        manifest = Manifest.read(folder)
        try:
            vectors = Index.restore(folder / VECTORS, view=True, expansion_search=manifest.expansion)
            rows = pa.ipc.open_file(pa.memory_map(str(folder / ROWS))).read_all()
        except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
            raise SearchIndexError(folder, f"it cannot be opened: {' '.join(str(error).split())}") from error
        if vectors is None or not len(vectors) == rows.num_rows == manifest.rows or vectors.ndim != manifest.dimensions:
            raise SearchIndexError(folder, "its files do not belong together; build it anew")
        return cls(folder, manifest, vectors, rows)

    def check_model(self, served: Mapping[str, str]) -> None:
        """Raises SearchIndexError unless one of the `served` models, fingerprints by name, made its vectors."""
        if self.manifest.fingerprint not in served.values():
            there = ", ".join(f"{name} ({fingerprint})" for name, fingerprint in served.items())
            raise SearchIndexError(
                self._folder,
                f"its vectors are of {self.manifest.model} ({self.manifest.fingerprint}), and cannot be compared with "
                f"those of {there}: weights, transform, precision and backend must be the same",
            )

    def search(self, vectors: NDArray[np.float32], k: int) -> list[list[Neighbour]]:
        """Of each of `vectors`, (N, D) float32, the `k` rows most alike, the most alike first; fewer where there are
        fewer. A vector of zeros is like nothing: its similarities are 0. Runs in this thread, without the GIL."""
        return [self._neighbours(vector, min(k, self.manifest.rows)) for vector in unit(vectors)]

    def _neighbours(self, vector: NDArray[np.float32], k: int) -> list[Neighbour]:
        with self._turn:
            found = self._vectors.search(vector, k, exact=self.manifest.exact, threads=1)
        # What is over 1 is rounding.
        similarities = np.clip(1 - found.distances, -1, 1)
        return [
            Neighbour(row, self._paths[row].as_py(), similarity, self._thumbnails[row].is_valid)
            for row, similarity in zip(found.keys.tolist(), similarities.tolist(), strict=True)
        ]

    def thumbnail(self, row: int) -> bytes | None:
        """The JPEG file of a row; None where it has none, or there is no such row."""
        if not 0 <= row < self.manifest.rows:
            return None
        thumbnail: bytes | None = self._thumbnails[row].as_py()
        return thumbnail


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """`vectors`, (N, D), each of length 1, so that their inner products are cosines; one of zeros stays."""
    # In float64: squares of float32 numbers over- and underflow.
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(lengths, lengths, 1)).astype(np.float32)
