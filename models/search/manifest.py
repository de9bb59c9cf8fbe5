"""`manifest.json` of a search index: facts of the index, and digests of its files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from models.interface.errors import SearchIndexError

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


def digests(folder: Path) -> dict[str, str]:
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
