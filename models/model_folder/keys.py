"""Typed access to the keys of a TOML table. A wrong value raises an error of one line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeGuard, TypeVar

from models.interface.errors import ModelFolderError

_CHANNELS = 3

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True, slots=True)
class Keys:
    """A table of the TOML file `path`. `table`: its name there, "" for the file itself. Methods return None for a
    missing key, and raise ModelFolderError for a wrong value."""

    path: Path
    table: str
    values: Mapping[str, object]

    @classmethod
    def of(cls, path: Path, table: str, values: Mapping[str, object], known: Collection[str]) -> Self:
        """Return the table, if it has only `known` keys."""
        keys = cls(path, table, values)
        for key in values:
            if key not in known:
                similar = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {similar[0]}?" if similar else f"there is {', '.join(known)}"
                raise keys.refusal(key, f"there is no such key; {hint}")
        return keys

    def refusal(self, key: str, reason: str) -> ModelFolderError:
        return ModelFolderError(self.path, reason, f"{self.table}.{key}" if self.table else key)

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            raise self.refusal(key, f'must be a text, say {key} = "…", not {value!r}')
        return value

    def needed_text(self, key: str, meaning: str) -> str:
        value = self.text(key)
        if value is None:
            raise self.refusal(key, f"is missing: {meaning}")
        return value

    def one_of(self, key: str, choices: Collection[Choice]) -> Choice | None:
        value = self.text(key)
        chosen = next((choice for choice in choices if choice == value), None)
        if value is not None and chosen is None:
            raise self.refusal(key, f"must be one of {', '.join(choices)}, not {value!r}")
        return chosen

    def flag(self, key: str) -> bool | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refusal(key, f"must be true or false, not {value!r}")
        return value

    def whole_number(self, key: str, least: int, most: int) -> int | None:
        value = self.values.get(key)
        if value is None:
            return None
        # bool is a subclass of int in Python.
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refusal(key, f"must be a whole number from {least} to {most}, not {value!r}")
        return value

    def number(self, key: str, least: float, most: float) -> float | None:
        value = self.values.get(key)
        if value is not None and not (_is_number(value) and least <= value <= most):
            raise self.refusal(key, f"must be a number from {least:g} to {most:g}, not {value!r}")
        return None if value is None else float(value)

    def per_channel(self, key: str, *, positive: bool = False) -> tuple[float, float, float] | None:
        """Return three numbers, for red, green and blue."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != _CHANNELS or not all(map(_is_number, value)):
            raise self.refusal(key, f"must be three numbers, for red, green and blue of 0..1, not {value!r}")
        red, green, blue = map(float, value)
        if positive and min(red, green, blue) <= 0:
            raise self.refusal(key, f"must be more than 0 in each channel, not {value!r}")
        return red, green, blue

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
            raise self.refusal(key, f"must be a list of texts, not {value!r}")
        return tuple(value)

    def subtable(self, key: str, known: Collection[str]) -> Keys | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refusal(key, f"must be a table, [{key}], not {value!r}")
        return Keys.of(self.path, f"{self.table}.{key}" if self.table else key, value, known)

    def file(self, key: str) -> Path | None:
        """Return the file inside the folder that the key names."""
        text = self.text(key)
        return None if text is None else self.file_inside(key, text)

    def file_inside(self, key: str, text: str) -> Path:
        """Return the file of that name inside the folder, so that the folder is complete and can be moved."""
        folder = self.path.parent
        path = (folder / text).resolve()
        if Path(text).is_absolute() or not path.is_relative_to(folder.resolve()):
            raise self.refusal(key, f"must be a file inside {folder}, named from there, not {text!r}")
        if not path.is_file():
            others = [entry.name for entry in folder.iterdir() if entry.is_file() and entry != self.path]
            similar = difflib.get_close_matches(path.name, others, n=1)
            hint = f"; did you mean {similar[0]!r}?" if similar else ""
            raise self.refusal(key, f"there is no file {text!r} in {folder}{hint}")
        return path


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
