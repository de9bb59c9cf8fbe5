"""Read the names of the classes, in the order of their indices, from text or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from models.interface.errors import ModelFolderError
from models.model_folder.description import MIB, MOST_CLASSES, read_bounded

# A million classes of 32 bytes each.
_MOST_BYTES = 32 * MIB

# Names are part of every response.
_LONGEST_NAME = 1000


def read(file: Path) -> tuple[str, ...]:
    """Return the names, class 0 first. A .json file is a list of names, an object of names by index, or one of indices
    by name, as torchvision's `ImageFolder.class_to_idx`. Any other file is text, one name a line. Raises
    ModelFolderError."""
    try:
        text = read_bounded(file, _MOST_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFolderError(file, f"cannot be read as UTF-8 text: {error}") from error
    names = _of_json(file, text) if file.suffix.lower() == ".json" else _of_lines(file, text)
    if len(names) > MOST_CLASSES:
        raise ModelFolderError(file, f"has {len(names)} names; at most {MOST_CLASSES} are read")
    longest = max(names, key=len)
    if len(longest) > _LONGEST_NAME:
        raise ModelFolderError(
            file, f"has a name of {len(longest)} characters, {longest[:20]!r}…; at most {_LONGEST_NAME} are allowed"
        )
    return names


def _of_lines(file: Path, text: str) -> tuple[str, ...]:
    names = [line.strip() for line in text.rstrip().splitlines()]
    for number, name in enumerate(names, start=1):
        if not name:
            raise ModelFolderError(file, f"line {number} is empty, and would be the name of class {number - 1}")
    if not names:
        raise ModelFolderError(file, "holds no name; it should have one class a line, class 0 first")
    return tuple(names)


def _of_json(file: Path, text: str) -> tuple[str, ...]:
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(file, f"is not JSON: {error}") from error
    if isinstance(held, list):
        held = {str(index): name for index, name in enumerate(held)}
    elif isinstance(held, dict) and held and all(type(index) is int for index in held.values()):
        held = _inverted(file, held)
    if not isinstance(held, dict) or not held or not all(isinstance(name, str) and name for name in held.values()):
        raise ModelFolderError(
            file, 'must be a list of names, {"0": "name of class 0", …} or {"name of class 0": 0, …}, and is none'
        )
    return _in_order(file, held)


def _inverted(file: Path, indices: Mapping[str, int]) -> dict[str, str]:
    names = {str(index): name for name, index in indices.items()}
    if len(names) < len(indices):
        raise ModelFolderError(file, "two names have the same index")
    return names


def _in_order(file: Path, names: Mapping[str, str]) -> tuple[str, ...]:
    for index in range(len(names)):
        if str(index) not in names:
            raise ModelFolderError(file, f"has {len(names)} names and none of index {index}; indices begin at 0")
    return tuple(names[str(index)] for index in range(len(names)))
