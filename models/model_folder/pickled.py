"""Explain a checkpoint that PyTorch refuses with weights_only=True. Its pickle is parsed and never run."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_NEW_FILE = "weights.pt"

# Before PyTorch 1.6, three pickles come first: a magic number, a version and the word sizes of the system.
_PICKLES_BEFORE_THE_OBJECT = 3

# Modules of the classes in a state dict.
_PLAIN_MODULES = ("collections", "torch", "torch._utils", "torch._tensor", "torch.storage")


@dataclass(frozen=True, slots=True)
class _Program:
    """A parsed pickle. `classes`: what it would import, apart from what tensors need."""

    is_dict: bool
    classes: tuple[str, ...]
    texts: frozenset[str]


def remedy(file: Path, wrappers: Sequence[str]) -> str | None:
    """Return what `file` holds instead of plain tensors, and how to save those; None if it is damaged or of another
    kind.

    `wrappers`: the keys under which a checkpoint may have them.
    """
    if _is_torchscript(file):
        return (
            f"is a TorchScript program, which is not run here. {_recipe(f'torch.jit.load({file.name!r}).state_dict()')}"
        )
    program = _program(file)
    if program is None or not program.classes:
        return None
    loaded = f"torch.load({file.name!r}, weights_only=False)"
    named = ", ".join(program.classes[:3])
    if not program.is_dict:
        return (
            f"is a whole pickled model ({named}), which is code, and not run here. {_recipe(f'{loaded}.state_dict()')}"
        )
    wrapper = next((f"[{key!r}]" for key in wrappers if key in program.texts), "")
    return f"holds pickled objects ({named}), which are code, and not run here. {_recipe(loaded + wrapper)}"


def _recipe(tensors: str) -> str:
    return f'Where you trust it, save the weights alone: python -c "import torch; torch.save({tensors}, {_NEW_FILE!r})"'


def _is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _program(file: Path) -> _Program | None:
    try:
        if not zipfile.is_zipfile(file):
            with file.open("rb") as stream:
                for _ in range(_PICKLES_BEFORE_THE_OBJECT):
                    _read(stream)
                return _read(stream)
        with zipfile.ZipFile(file) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            return None if member is None else _read(io.BytesIO(archive.read(member)))
    except (ValueError, OSError, zipfile.BadZipFile):
        return None


def _read(stream: IO[bytes]) -> _Program:
    """Parse the next pickle of `stream`. Raises ValueError if there is none."""
    operations = [(operation.name, argument) for operation, argument, _ in pickletools.genops(stream)]
    imported = [str(argument).split(" ", 1) for name, argument in operations if name == "GLOBAL"]
    # The first object that it creates is the result: a dict, or an instance of a class.
    made = next((made for made in operations if made[0] in {"EMPTY_DICT", "GLOBAL"}), ("", None))
    return _Program(
        is_dict=made in {("EMPTY_DICT", None), ("GLOBAL", "collections OrderedDict")},
        classes=tuple(dict.fromkeys(f"{module}.{name}" for module, name in imported if module not in _PLAIN_MODULES)),
        texts=frozenset(argument for _, argument in operations if isinstance(argument, str)),
    )
