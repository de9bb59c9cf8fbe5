"""Settings that mean the same in every process of a cluster, whatever folder it works in."""

from __future__ import annotations

from pathlib import Path

from app.settings import Settings
from models.model_folder.description import FILE_NAME

_FOLDERS = ("models_folder", "cache_folder", "calibration_folder", "search_index", "api_keys_file")


def anywhere(settings: Settings, folder: Path) -> Settings:
    """`settings` with whole paths for those that begin in `folder`; what begins with ~ is each machine's own."""
    folders = {name: path for name in _FOLDERS if (path := getattr(settings, name)) is not None}
    whole = {name: path if str(path).startswith("~") else folder / path for name, path in folders.items()}
    return settings.model_copy(update={**whole, "models": tuple(_model(name, folder) for name in settings.models)})


def _model(name: str, folder: Path) -> str:
    if name.startswith("."):
        return str(folder / name)
    # As models.loading.catalog decides between names and paths, whom nobody need wait for who has no such folder.
    if name.startswith("~") or not (folder / name / FILE_NAME).is_file():
        return name
    from models.loading.catalog import is_named  # noqa: PLC0415

    return name if is_named(name) else str(folder / name)
