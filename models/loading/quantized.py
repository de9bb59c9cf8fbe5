"""A network that has been quantized already and lies in its model folder: which files it is, and of which weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Beside the .xml, which describes the network, lie its weights.
WEIGHTS_SUFFIX = ".bin"


def digest(file: Path) -> str:
    """16 hex digits over the network in `file`, a .xml, and its weights beside it."""
    found = hashlib.sha256()
    for part in (file, file.with_suffix(WEIGHTS_SUFFIX)):
        with part.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:16]
