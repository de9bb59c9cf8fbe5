"""The inputs of every measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Bench:
    """Pictures by size (the usual size first), the interpreter of the project's environment, the folder for logs."""

    pictures: Mapping[str, list[Path]]
    project_python: Path
    log_folder: Path

    @property
    def usual_size(self) -> str:
        return next(iter(self.pictures))

    @property
    def usual(self) -> list[Path]:
        """Return the pictures of the usual size."""
        return self.pictures[self.usual_size]

    @property
    def usual_folder(self) -> Path:
        return self.usual[0].parent
