"""Sources of models. A source is looked up each time that the model is loaded, so that changes are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from models.interface.errors import UnknownSourceError
from models.interface.home import expand_home
from models.loading import catalog
from models.networks.specs import ModelSpec

# Returns the spec of the model. Raises StartError.
ModelSource = Callable[[], ModelSpec]

# A name or a relative path without drive, home or parent folder.
_PLAIN = re.compile(r"\w[\w.:-]*(/\w[\w.:-]*)*", re.ASCII)


def from_operator(model: str | ModelSpec) -> ModelSource:
    """Return the source of a model that the operator named: any name or path."""
    return (lambda: model) if isinstance(model, ModelSpec) else partial(catalog.find, model)


def from_request(source: str, name: str, models_folder: Path | None) -> ModelSource:
    """Return the source of a model that an HTTP request named, to be served as `name`: a folder inside `models_folder`
    with all links followed, or else a name of the catalog. The lookup raises UnknownSourceError, and what the catalog
    raises."""
    return lambda: replace(_found(source, models_folder), name=name)


def _found(source: str, models_folder: Path | None) -> ModelSpec:
    if not _PLAIN.fullmatch(source):
        raise UnknownSourceError(
            source, "say a name that `gradless models` lists, or a folder of GRADLESS_MODELS_FOLDER"
        )
    folder = None if models_folder is None else _inside(expand_home(models_folder), source)
    return catalog.named(source) if folder is None else catalog.find(str(folder))


def _inside(models_folder: Path, source: str) -> Path | None:
    """Return the folder `source` of `models_folder` with all links followed; None if there is none."""
    folder = (models_folder / source).resolve()
    if not folder.is_dir():
        return None
    if not folder.is_relative_to(models_folder.resolve()):
        raise UnknownSourceError(source, "it leads out of GRADLESS_MODELS_FOLDER")
    return folder
