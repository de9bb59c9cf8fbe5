"""Make the paths of settings absolute, so that they mean the same in every process of a cluster."""

from __future__ import annotations

from pathlib import Path

from app.settings import Settings
from models.model_folder.description import FILE_NAME

_PATHS = ("models_folder", "cache_folder", "calibration_folder", "search_index", "api_keys_file")


def with_absolute_paths(settings: Settings, folder: Path) -> Settings:
    """Return `settings` with relative paths resolved against `folder`. Paths that begin with ~ stay: each machine
    resolves its own."""
    paths = {name: path for name in _PATHS if (path := getattr(settings, name)) is not None}
    absolute = {name: path if str(path).startswith("~") else folder / path for name, path in paths.items()}
    return settings.model_copy(update={**absolute, "models": tuple(_model(name, folder) for name in settings.models)})


def _model(name: str, folder: Path) -> str:
    if name.startswith("."):
        return str(folder / name)
    # As models.loading.catalog distinguishes names from paths. It imports torch, so it is asked only about folders
    # that exist.
    if name.startswith("~") or not (folder / name / FILE_NAME).is_file():
        return name
    from models.loading.catalog import is_named  # noqa: PLC0415

    return name if is_named(name) else str(folder / name)
