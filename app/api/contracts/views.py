"""Names of models in other protocols: NAME, or NAME@WORD with words that say what is sent and what is returned.

All views of a model are that model, and take every form of image. They differ in the input that they advertise, and in
the output that is meant when the client names none: some clients insist on exactly one of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from app.api.dependencies import card_named
from app.http.problems import UnknownVersionError
from models.interface.errors import UnknownModelError
from models.interface.results import ModelCard
from models.interface.runtime import Runtime

# Encoded files, pixels of 0..255, or pixels normalized as the network takes them.
Input = Literal["files", "pixels", "tensor"]
Output = Literal["probabilities", "features"]

_INPUTS: Mapping[str, Input] = {"pixels": "pixels", "tensor": "tensor"}
_FEATURES = "features"

# No model has it in its name.
_SEPARATOR = "@"

# The version that always means what is served, as clients write it into their code.
_SERVED_NOW = "1"


@dataclass(frozen=True, slots=True)
class View:
    """A served model under the name that the client used."""

    name: str
    model: ModelCard
    input: Input
    output: Output


def model_of(name: str) -> str:
    """Return the model's name in the name of a view."""
    return name.partition(_SEPARATOR)[0]


def view_of(model: ModelCard, name: str | None = None) -> View:
    """Return the view of `model` called `name`; None is the model's own name. Raises UnknownModelError."""
    name = model.name if name is None else name
    words = name.split(_SEPARATOR)[1:]
    inputs = [_INPUTS[word] for word in words if word in _INPUTS]
    known = [*inputs, *(word for word in words if word == _FEATURES)]
    if len(known) < len(words) or len(inputs) > 1 or len(set(known)) < len(known):
        raise UnknownModelError(name, view_names(model))
    output: Output = "features" if _FEATURES in words or not model.classes else "probabilities"
    return View(name, model, inputs[0] if inputs else "files", output)


def view_named(runtime: Runtime, name: str, version: str | None = None) -> View:
    """Return the view of that name. Raises UnknownModelError, UnknownVersionError."""
    view = view_of(card_named(runtime, model_of(name)), name)
    if version is not None:
        check_version(view.model.name, view.model.version, version)
    return view


def view_names(model: ModelCard) -> list[str]:
    """Return the names of all views of `model`, its own name first."""
    inputs = ["", *(_SEPARATOR + word for word in _INPUTS)]
    # Features are what a model without classes returns anyway.
    outputs = ["", _SEPARATOR + _FEATURES] if model.classes else [""]
    return [model.name + taken + returned for returned in outputs for taken in inputs]


def split_path(models: Mapping[str, ModelCard], path: str) -> tuple[str, str]:
    """Split NAME/REST into the name of a view and the rest, which may be empty. Names may have slashes: the longest
    served one counts. Without a served one, all of `path` is the name."""
    served = [name for name in models if path.startswith(name) and path[len(name) : len(name) + 1] in {"", "/", "@"}]
    if not served:
        return path, ""
    end = path.find("/", max(map(len, served)))
    return (path, "") if end < 0 else (path[:end], path[end + 1 :])


def check_version(model: str, served: int, version: str) -> None:
    """Raise UnknownVersionError unless `version` is 1, or the `served` one; `.0` may follow."""
    if version.removesuffix(".0") not in {_SERVED_NOW, str(served)}:
        raise UnknownVersionError(model, version, served)
