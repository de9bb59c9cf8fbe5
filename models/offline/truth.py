"""True classes of images, from one folder per class or from a list of labels."""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.interface.errors import JobError
from models.offline import files

# Unknown names listed in an error message.
_MOST_LISTED = 10


@dataclass(frozen=True, slots=True)
class Truth:
    """The class index of each file, in order. `unknown` maps names that are no class to labels of similar spelling;
    their files are left out."""

    classes: Mapping[str, int]
    unknown: Mapping[str, Sequence[str]]

    def check(self, *, ignore_unknown: bool) -> None:
        """Raise JobError if a name is no class, unless `ignore_unknown`, or if no file is left."""
        listed = [_asked(name, similar) for name, similar in list(self.unknown.items())[:_MOST_LISTED]]
        more = f" and {len(self.unknown) - _MOST_LISTED} more" if len(self.unknown) > _MOST_LISTED else ""
        if self.unknown and not (ignore_unknown and self.classes):
            raise JobError(
                f"no label or index of a class of the model: {'; '.join(listed)}{more}"
                + (" (--ignore-unknown leaves their images out)" if self.classes else "")
            )


def by_folder(folder: Path, report: Callable[[str], None] = lambda _: None) -> dict[str, str]:
    """Map each file to the name of the folder in `folder` that contains it. `report` is as of files.find.

    Raises JobError.
    """
    if not folder.is_dir():
        raise JobError(f"{folder} is no folder")
    found: dict[str, str] = {}
    for file in files.find([folder], report):
        inside = Path(file).relative_to(folder).parts
        if len(inside) == 1:
            raise JobError(
                f"{files.name(file)} is in no folder of a class: {folder} needs one folder per class, "
                "or use --labels with a list"
            )
        found[file] = inside[0]
    return found


def by_list(path: Path, folder: Path) -> dict[str, str]:
    """Map each file to its label, from lines "path,label" in a .csv, else "path label" separated by a tab or space.

    Paths are relative to `folder`. Raises JobError.
    """
    found: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for number, row in enumerate(_rows(lines, comma=path.suffix.lower() == ".csv"), 1):
                if number == 1 and [cell.strip().lower() for cell in row] == ["path", "label"]:
                    continue
                if len(row) != 2:  # noqa: PLR2004 - a path and a label
                    raise JobError(f"{path}, line {number}: expected a path and a label")
                found[str(folder / row[0].strip())] = row[1].strip()
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise JobError(f"{path} is not UTF-8 text") from None
    if not found:
        raise JobError(f"{path} names no file")
    return found


def of(named: Mapping[str, str], labels: Sequence[str]) -> Truth:
    """Resolve labels or class indices. A label that several classes share is unknown; use their indices."""
    known = _known(labels)
    resolved = {name: known.get(name, known.get(_plain(name))) for name in dict.fromkeys(named.values())}
    by_plain = {_plain(label): label for label in labels}
    unknown = {
        name: [by_plain[near] for near in difflib.get_close_matches(_plain(name), by_plain, n=3)]
        for name, index in resolved.items()
        if index is None
    }
    classes = {file: index for file, name in named.items() if (index := resolved[name]) is not None}
    return Truth(classes, unknown)


def _known(labels: Sequence[str]) -> dict[str, int]:
    """Map every spelling of a class to its index. Exact labels win over normalized ones, and those over indices."""
    indices = {str(index): index for index in range(len(labels))}
    return indices | _unique([_plain(label) for label in labels]) | _unique(labels)


def _unique(spellings: Sequence[str]) -> dict[str, int]:
    """Map each spelling to its place, without those that several have."""
    times = Counter(spellings)
    return {spelling: place for place, spelling in enumerate(spellings) if times[spelling] == 1}


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").lower().split())


def _rows(lines: Iterator[str], *, comma: bool) -> Iterator[list[str]]:
    if comma:
        yield from filter(None, csv.reader(lines))
        return
    for line in lines:
        if line.strip():
            yield line.rstrip("\r\n").split("\t", 1) if "\t" in line else line.split(maxsplit=1)


def _asked(name: str, similar: Sequence[str]) -> str:
    return f"{name!r}" + (f", did you mean {' or '.join(map(repr, similar))}?" if similar else "")
