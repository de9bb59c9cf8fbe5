"""An index of feature vectors: its manifest, the neighbours of a vector, and path and thumbnail of each row.

usearch maps one file of vectors and their graph into memory. It brings no OpenMP, whose threads would compete with
PyTorch's.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from models.interface.errors import SearchIndexError

if TYPE_CHECKING:
    import pyarrow as pa
    from usearch.index import Index

VECTORS = "vectors.usearch"
ROWS = "rows.arrow"
_FILES = {VECTORS, ROWS}

_NAME = "manifest.json"
_FORMAT = 1

_TYPES: dict[Any, type] = {"str": str, "int": int, "bool": bool, "float": float, "dict[str, str]": dict}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Facts of an index of `rows` vectors of `dimensions` numbers, made by the model with `fingerprint`.

    With `exact`, a query compares every vector. Otherwise it keeps `expansion` candidates, and found the share `recall`
    of the ten nearest when the index was built. `thumbnails` is the number of rows with one; `digests` maps file to
    SHA-256.
    """

    model: str
    fingerprint: str
    dimensions: int
    rows: int
    thumbnails: int
    exact: bool
    expansion: int
    recall: float
    digests: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of `folder` and check its files. Raises SearchIndexError."""
        try:
            written = json.loads((folder / _NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SearchIndexError(folder, f"it has no {_NAME}; build one with `gradless search build`") from None
        except (OSError, ValueError) as error:
            raise SearchIndexError(folder, f"its {_NAME} cannot be read: {error}") from error
        manifest = cls._of(folder, written)
        for file, digest in manifest.digests.items():
            if _digest(folder, file) != digest:
                raise SearchIndexError(folder, f"its {file} was changed; build it again")
        return manifest

    @classmethod
    def _of(cls, folder: Path, written: Any) -> Self:
        version = written.pop("format", None) if isinstance(written, dict) else None
        if version != _FORMAT:
            raise SearchIndexError(
                folder, f"its format is {version!r}, but this version reads {_FORMAT}; build it again"
            )
        types = {field.name: _TYPES[field.type] for field in fields(cls)}
        if {name: type(value) for name, value in written.items()} != types or set(written["digests"]) != _FILES:
            raise SearchIndexError(folder, f"its {_NAME} was changed; build it again")
        return cls(**written)

    def write(self, folder: Path) -> None:
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2)
        (folder / _NAME).write_text(text + "\n", encoding="utf-8")


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the index in `folder`."""
    return {file: _digest(folder, file) for file in _FILES}


def is_index(folder: Path) -> bool:
    """Return whether `folder` has an index, readable or not."""
    return (folder / _NAME).is_file()


def _digest(folder: Path, file: str) -> str:
    try:
        with (folder / file).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise SearchIndexError(folder, f"its {file} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A row of the index. `similarity` is the cosine, -1..1, of its vector and the query's; `thumbnail` is True
    if the index has one for it."""

    row: int
    path: str
    similarity: float
    thumbnail: bool


class SearchIndex:
    """A read-only index. Thread-safe."""

    def __init__(self, folder: Path, manifest: Manifest, vectors: Index, rows: pa.Table) -> None:
        self._folder = folder
        self.manifest = manifest
        self._vectors = vectors
        # One lookup at a time: more would take cores from the decoders.
        self._lock = threading.Lock()
        self._paths = rows.column("path")
        self._thumbnails = rows.column("thumbnail")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the index in `folder` after checking its digests. Raises SearchIndexError."""
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
            raise SearchIndexError(folder, "its files do not belong together; build it again")
        return cls(folder, manifest, vectors, rows)

    def check_model(self, served: Mapping[str, str]) -> None:
        """Raise SearchIndexError unless one of the `served` models, fingerprints by name, made its vectors."""
        if self.manifest.fingerprint not in served.values():
            there = ", ".join(f"{name} ({fingerprint})" for name, fingerprint in served.items())
            raise SearchIndexError(
                self._folder,
                f"its vectors are of {self.manifest.model} ({self.manifest.fingerprint}), and cannot be compared with "
                f"those of {there}: weights, transform, precision and backend must be the same",
            )

    def search(self, vectors: NDArray[np.float32], k: int) -> list[list[Neighbour]]:
        """Return the `k` most similar rows, or all if there are fewer, of each of `vectors`, (N, D) float32.

        They are sorted by falling similarity. The similarities of a zero vector are 0. Releases the GIL.
        """
        return [self._neighbours(vector, min(k, self.manifest.rows)) for vector in unit(vectors)]

    def _neighbours(self, vector: NDArray[np.float32], k: int) -> list[Neighbour]:
        with self._lock:
            found = self._vectors.search(vector, k, exact=self.manifest.exact, threads=1)
        # Rounding can exceed 1.
        similarities = np.clip(1 - found.distances, -1, 1)
        return [
            Neighbour(row, self._paths[row].as_py(), similarity, self._thumbnails[row].is_valid)
            for row, similarity in zip(found.keys.tolist(), similarities.tolist(), strict=True)
        ]

    def thumbnail(self, row: int) -> bytes | None:
        """Return the JPEG thumbnail of a row, or None if there is none or no such row."""
        if not 0 <= row < self.manifest.rows:
            return None
        thumbnail: bytes | None = self._thumbnails[row].as_py()
        return thumbnail


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """`vectors`, (N, D), each of length 1, so that their inner products are cosines; one of zeros stays."""
    # In float64: squares of float32 numbers over- and underflow.
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(lengths, lengths, 1)).astype(np.float32)
