"""Networks of the user's own, `module:callable`: imported from the model folder, or from installed packages."""

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

from torch import nn

from models.interface.errors import ModelFolderError
from models.model_folder.description import MIB, Description, read_bounded
from models.networks import architectures

_REFERENCE = re.compile(r"(?P<module>\w+(\.\w+)*):(?P<name>\w+(\.\w+)*)")
# Of a Python file.
_MOST_BYTES = 16 * MIB


def is_own(architecture: str) -> bool:
    """Return whether it has the form `module:callable`; no catalog name does."""
    return ":" in architecture


def digest(description: Description) -> str | None:
    """Return 16 hex digits over the Python files in the folder; None if the architecture is not in the folder. Results
    depend on the code as much as on the weights."""
    if not _in_folder(description, _parts(description)[0]):
        return None
    found = hashlib.sha256()
    for file in sources(description.folder):
        found.update(f"{file.relative_to(description.folder)}\0".encode())
        found.update(hashlib.sha256(read_bounded(file, _MOST_BYTES)).digest())
    return found.hexdigest()[:16]


def builder(description: Description) -> Callable[[int | None], nn.Module]:
    """Return a function that calls the user's callable, seeded, with `num_classes` if it has that parameter and a
    number is given. Errors in the code raise ModelFolderError, here or in the call."""
    made = _callable(description)
    takes_classes = _takes_classes(made)

    def build(classes: int | None) -> nn.Module:
        arguments = {"num_classes": classes} if takes_classes and classes is not None else {}
        with architectures.seeded():
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
        kind = type(found).__name__
        raise description.refusal("architecture", f"{name} of {dotted} cannot be called; it is a {kind}")
    return found


def _module(description: Description, dotted: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        package = f"{_package(description)}." if _in_folder(description, dotted) else ""
        return importlib.import_module(f"{package}{dotted}")
    except ModuleNotFoundError as error:
        if error.name is not None and _in_folder(description, error.name):
            advice = f"write `from .{error.name} import …` there"
            reason = f"{dotted} imports {error.name!r}, which is beside it: {advice}"
            raise description.refusal("architecture", reason) from error
        raise _failure(description, error) from error
    except Exception as error:
        raise _failure(description, error) from error


def _package(description: Description) -> str:
    """Return the name of a package whose modules are the files of the folder. It depends on path and content, so that
    folders with equal file names, and changed versions of a folder, can be loaded at the same time."""
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
    """Yield the Python files in `folder` and below it, in an order that does not depend on its location."""
    for parent, folders, files in os.walk(folder):
        # Sorted; without hidden folders and caches of tools.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".py"))


def _takes_classes(made: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(made).parameters
    except ValueError:
        # A callable in C has no signature.
        return False
    return "num_classes" in parameters or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _failure(description: Description, error: Exception) -> ModelFolderError:
    """Return the error of the user's code, with its line."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(description.folder.resolve())]
    where = f" in line {inside[-1].lineno} of {Path(inside[-1].filename).name}" if inside else ""
    raised = f"{description.architecture} raised {type(error).__name__}{where}: {error}"
    return description.refusal("architecture", raised)
