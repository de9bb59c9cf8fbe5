"""Networks of the user's own, `module:callable`: imported from the model folder, or from what is installed."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from models.interface.errors import ModelFolderError
from models.model_folder.description import MIB, Description, read_bounded

_REFERENCE = re.compile(r"(?P<module>\w+(\.\w+)*):(?P<name>\w+(\.\w+)*)")

_SEED = 0

# Of one file of Python.
_MOST_BYTES = 16 * MIB


def is_own(architecture: str) -> bool:
    """Whether it is written as `module:callable`; no name of a catalog has a module before its colon."""
    return ":" in architecture


def digest(description: Description) -> str | None:
    """Of the Python files in the folder, where the architecture is one of them: 16 hex digits. What a network does
    stands in its code as much as in its weights."""
    if not _in_folder(description, _parts(description)[0]):
        return None
    found = hashlib.sha256()
    for file in sources(description.folder):
        found.update(f"{file.relative_to(description.folder)}\0".encode())
        found.update(hashlib.sha256(read_bounded(file, _MOST_BYTES)).digest())
    return found.hexdigest()[:16]


def builder(description: Description) -> Callable[[int | None], nn.Module]:
    """What makes the network: the callable, seeded, with `num_classes` where it takes that and is given a number. Code
    that fails raises ModelFolderError, here or when it is called."""
    made = _callable(description)
    takes_classes = _takes_classes(made)

    def build(classes: int | None) -> nn.Module:
        arguments = {"num_classes": classes} if takes_classes and classes is not None else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            try:
                module = made(**arguments)
            except Exception as error:
                raise _failure(description, error) from error
        if not isinstance(module, nn.Module):
            raise description.refusal("architecture", f"must make a torch.nn.Module, and made {type(module).__name__}")
        return module

    return build


def _callable(description: Description) -> Callable[..., object]:
    dotted, name = _parts(description)
    found: object = _module(description, dotted)
    for part in name.split("."):
        if not hasattr(found, part):
            similar = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise description.refusal("architecture", f"{dotted} has no {part!r}{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise description.refusal(
            "architecture", f"{name} of {dotted} cannot be called; it is a {type(found).__name__}"
        )
    return found


def _module(description: Description, dotted: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        if _in_folder(description, dotted):
            return importlib.import_module(f"{_package(description)}.{dotted}")
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name is not None and _in_folder(description, error.name):
            raise description.refusal(
                "architecture",
                f"{dotted} imports {error.name!r}, which is beside it: write `from .{error.name} import …` there",
            ) from error
        raise _failure(description, error) from error
    except Exception as error:
        raise _failure(description, error) from error


def _package(description: Description) -> str:
    """The name of a package whose modules are the folder's files: of this folder and what is in them, so that folders
    with files of the same names can be served side by side, and changed ones be loaded beside those in use."""
    key = hashlib.sha256(f"{description.folder.resolve()}\0{digest(description)}".encode()).hexdigest()[:16]
    name = f"gradless_model_{key}"
    if name not in sys.modules:
        spec = ModuleSpec(name, loader=None, is_package=True)
        spec.submodule_search_locations = [str(description.folder.resolve())]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return name


def _parts(description: Description) -> tuple[str, str]:
    found = _REFERENCE.fullmatch(description.architecture)
    if found is None:
        raise description.refusal(
            "architecture", f"{description.architecture!r} must be module:callable, say net:build for build() of net.py"
        )
    return found["module"], found["name"]


def _in_folder(description: Description, dotted: str) -> bool:
    path = description.folder.joinpath(*dotted.split("."))
    return Path(f"{path}.py").is_file() or (path / "__init__.py").is_file()


def sources(folder: Path) -> Iterator[Path]:
    """The Python files in `folder` and below it, in the same order wherever it lies."""
    for parent, folders, files in os.walk(folder):
        # In order, wherever the folder lies; and not what tools keep for themselves.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".py"))


def _takes_classes(made: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(made).parameters
    except ValueError:
        # It is written in C, and does not say.
        return False
    return "num_classes" in parameters or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _failure(description: Description, error: Exception) -> ModelFolderError:
    """What the user's code has raised, and the line of it."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(description.folder.resolve())]
    where = f" in line {inside[-1].lineno} of {Path(inside[-1].filename).name}" if inside else ""
    return description.refusal(
        "architecture", f"{description.architecture} raised {type(error).__name__}{where}: {error}"
    )
