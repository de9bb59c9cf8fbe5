"""The record of a finished job, so that resuming it again does nothing.

It is written next to out.parquet as .out.parquet.job.json: the job's identity, and size and modification time of the
output, which another program may change later.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.offline.parts import JOB, JobIdentity


def record(output: Path, job: JobIdentity, faults: int) -> None:
    """Record that `output` is complete, with `faults` files without an answer. Raises OSError."""
    record_file = _record_of(output)
    unfinished = record_file.with_name(f"{record_file.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump({**asdict(job), **_file_state(output), "faults": faults}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(record_file)


def faults(output: Path, job: JobIdentity) -> int | None:
    """Return the number of files without an answer in the `output` of an identical job.

    None if there is no output, or it belongs to another job or was changed."""
    try:
        kept: dict[str, Any] = json.loads(_record_of(output).read_text(encoding="utf-8"))
        same = {**asdict(job), **_file_state(output), "faults": kept["faults"]} == kept
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(kept["faults"]) if same else None


def _record_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.{JOB}")


def _file_state(output: Path) -> dict[str, int]:
    status = output.stat()
    return {"output_bytes": status.st_size, "output_modified_ns": status.st_mtime_ns}
