"""What every measurement has to hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement needs: the pictures by size, the usual size first; the interpreter of the project's
    environment; the folder for what servers say."""

    pictures: Mapping[str, list[Path]]
    project_python: Path
    log_folder: Path

    @property
    def usual_size(self) -> str:
        return next(iter(self.pictures))

    @property
    def usual(self) -> list[Path]:
        """The pictures that are sent where nothing is said of sizes."""
        return self.pictures[self.usual_size]

    @property
    def usual_folder(self) -> Path:
        return self.usual[0].parent
