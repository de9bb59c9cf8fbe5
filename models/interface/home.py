"""Paths that begin with ~."""

from __future__ import annotations

from pathlib import Path

from models.interface.errors import StartError


def expand_home(path: Path) -> Path:
    """Return `path` with ~ replaced by the home folder. Raises StartError where there is no such folder, as for a user
    without an entry in /etc/passwd while HOME is unset."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise StartError(
            f"{path} names no folder, as the home folder that ~ stands for is not known; "
            "set HOME, or give a path without ~"
        ) from None
