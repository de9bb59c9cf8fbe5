"""Where a model comes from: looked up anew each time that it is loaded, so that what has changed there is read."""

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

# What finds the spec. Raises StartError.
Origin = Callable[[], ModelSpec]

# Of a name or a relative path: no drive, no home, no parent.
_PLAIN = re.compile(r"\w[\w.:-]*(/\w[\w.:-]*)*", re.ASCII)


def of_operator(wanted: str | ModelSpec) -> Origin:
    """What whoever started the process named, wherever it is."""
    return (lambda: wanted) if isinstance(wanted, ModelSpec) else partial(catalog.find, wanted)


def of_caller(source: str, name: str, models_folder: Path | None) -> Origin:
    """What somebody named who may load models but need not see the machine: a folder in `models_folder`, wherever
    links lead, or else a name of the catalog; served as `name`. Finding it raises UnknownSourceError, and what the
    catalog raises."""
    return lambda: replace(_found(source, models_folder), name=name)


def _found(source: str, models_folder: Path | None) -> ModelSpec:
    if not _PLAIN.fullmatch(source):
        raise UnknownSourceError(
            source, "say a name that `gradless models` lists, or a folder of GRADLESS_MODELS_FOLDER"
        )
    folder = None if models_folder is None else _inside(expand_home(models_folder), source)
    return catalog.named(source) if folder is None else catalog.find(str(folder))


def _inside(models_folder: Path, source: str) -> Path | None:
    """The folder `source` of `models_folder` with all links followed; None where there is none."""
    folder = (models_folder / source).resolve()
    if not folder.is_dir():
        return None
    if not folder.is_relative_to(models_folder.resolve()):
        raise UnknownSourceError(source, "it leads out of GRADLESS_MODELS_FOLDER")
    return folder
