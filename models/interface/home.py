"""Expand paths that begin with ~."""

from __future__ import annotations

from pathlib import Path

from models.interface.errors import StartError


def expand_home(path: Path) -> Path:
    """Return `path` with ~ replaced by the home folder. Raises StartError if the home folder is unknown: HOME is unset
    and the user has no entry in /etc/passwd."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise StartError(
            f"{path} cannot be expanded, because the home folder is unknown; set HOME, or use a path without ~"
        ) from None
