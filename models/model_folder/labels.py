"""The names of the classes, in the order of their indices, from a file as people have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from models.errors import ModelFolderError


def read(file: Path) -> tuple[str, ...]:
    """Class 0's name first. JSON by the ending .json: a list of names, an object of names by index, or one of indices
    by name, as torchvision's `ImageFolder.class_to_idx`. Anything else is text, one name a line. Raises
    ModelFolderError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFolderError(file, f"cannot be read as UTF-8 text: {error}") from error
    return _of_json(file, text) if file.suffix.lower() == ".json" else _of_lines(file, text)


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
    except ValueError as error:
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
