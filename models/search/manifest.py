"""What a folder says of the search index in it: `manifest.json`, beside the files that it vouches for."""

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
    """An index of `rows` vectors of `dimensions` numbers, which the model of that `fingerprint` made.

    `exact`: a query looks at every vector; else at some, `expansion` at a time, which found `recall` of the ten nearest
    when it was built. `thumbnails`: how many rows have one. `digests`: SHA-256 by file.
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
        """That of `folder`, whose files are as they were written. Raises SearchIndexError."""
        try:
            written = json.loads((folder / _NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SearchIndexError(folder, f"it has no {_NAME}; gradless search build makes one") from None
        except (OSError, ValueError) as error:
            raise SearchIndexError(folder, f"its {_NAME} cannot be read: {error}") from error
        manifest = cls._of(folder, written)
        for file, digest in manifest.digests.items():
            if _digest(folder, file) != digest:
                raise SearchIndexError(folder, f"its {file} is not as it was written; build it anew")
        return manifest

    @classmethod
    def _of(cls, folder: Path, written: Any) -> Self:
        version = written.pop("format", None) if isinstance(written, dict) else None
        if version != _FORMAT:
            raise SearchIndexError(folder, f"its format is {version!r}, and {_FORMAT} is read here; build it anew")
        wanted = {field.name: _TYPES[field.type] for field in fields(cls)}
        if {name: type(value) for name, value in written.items()} != wanted or set(written["digests"]) != _FILES:
            raise SearchIndexError(folder, f"its {_NAME} is not as it was written; build it anew")
        return cls(**written)

    def write(self, folder: Path) -> None:
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2)
        (folder / _NAME).write_text(text + "\n", encoding="utf-8")


def digests(folder: Path) -> dict[str, str]:
    """Of the files in `folder` that a manifest vouches for."""
    return {file: _digest(folder, file) for file in _FILES}


def is_index(folder: Path) -> bool:
    """Whether there is an index in `folder`, readable or not."""
    return (folder / _NAME).is_file()


def _digest(folder: Path, file: str) -> str:
    try:
        with (folder / file).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise SearchIndexError(folder, f"its {file} cannot be read: {error.strerror}") from error
