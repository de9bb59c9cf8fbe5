"""What is kept of a job when its parts are gone, so that to resume it once more is to do nothing.

Beside out.parquet, in .out.parquet.job.json: what was asked for, and by which size and time the output is known, which
another program may have written since.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.offline.parts import JOB, Asked


def keep(output: Path, asked: Asked, faults: int) -> None:
    """Note that `output` is the whole answer to what was asked, where `faults` files have none. Raises OSError."""
    note = _note(output)
    unfinished = note.with_name(f"{note.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump({**asdict(asked), **_known_by(output), "faults": faults}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(note)


def faults(output: Path, asked: Asked) -> int | None:
    """How many files have no answer in the `output` of a job that has asked for the same; None where it is not there,
    is another's, or has been changed."""
    try:
        kept: dict[str, Any] = json.loads(_note(output).read_text(encoding="utf-8"))
        same = {**asdict(asked), **_known_by(output), "faults": kept["faults"]} == kept
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(kept["faults"]) if same else None


def _note(output: Path) -> Path:
    return output.with_name(f".{output.name}.{JOB}")


def _known_by(output: Path) -> dict[str, int]:
    status = output.stat()
    return {"output_bytes": status.st_size, "output_modified_ns": status.st_mtime_ns}
