"""Find the image files of a job, in a reproducible order. Needs the standard library alone."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from models.images.formats import SUFFIXES
from models.interface.errors import JobError

# Examples that a report of skipped entries has for each kind.
_MOST_LISTED = 3


class Skipped:
    """Counts entries of folders that are not read, by kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: defaultdict[str, list[str]] = defaultdict(list)
        self._endings: Counter[str] = Counter()

    def add(self, kind: str, example: str) -> None:
        """Count an entry. `kind` is a singular noun."""
        self._counts[kind] += 1
        if self._counts[kind] <= _MOST_LISTED:
            self._examples[kind].append(name(example))

    def add_other(self, file: str) -> None:
        """Count a file without a suffix of an image format, by its suffix."""
        self._endings[name(ending(file)) or "without a suffix"] += 1

    def __str__(self) -> str:
        """Return counts and examples, such as "1 hidden folder (.cache), 2 other files (2 .txt)"; empty if none."""
        parts = [_listed(kind, count, self._examples[kind], count) for kind, count in self._counts.items()]
        if self._endings:
            endings = [f"{count} {ending}" for ending, count in self._endings.most_common(_MOST_LISTED)]
            parts.append(_listed("other file", self._endings.total(), endings, len(self._endings)))
        return ", ".join(parts)


def find(paths: Sequence[Path], report: Callable[[str], None] = lambda _: None) -> list[str]:
    """Return each file of `paths` once, and for folders the files below them with an image suffix, sorted by name.

    Links are followed. A dangling link with an image suffix is a file too, which cannot be read. Hidden files and
    folders are skipped. `report` is called with a sentence about what was skipped, if anything was. A found path starts
    with the folder as it was given. Raises JobError for a path that does not exist or cannot be listed, and if there is
    no image at all.
    """
    skipped = Skipped()
    return checked((file for path in paths for file in under(path, skipped)), map(str, paths), skipped, report)


def checked(found: Iterable[str], places: Iterable[str], skipped: Skipped, report: Callable[[str], None]) -> list[str]:
    """Return each of `found` once, and report what was `skipped`. Raises JobError if `places` have no image."""
    # Strings, a fifth of the size of Path objects: there may be millions.
    files = list(dict.fromkeys(found))
    counts = str(skipped)
    if not files:
        reason = f"not read: {counts}" if counts else "in a folder only files with the suffix of an image are read"
        raise JobError(f"there is no image in {', '.join(map(name, places))}; {reason}")
    if counts:
        report(f"not read: {counts}")
    return files


def ending(file: str) -> str:
    """Return the suffix of a file's name in lower case, empty without one."""
    return os.path.splitext(file)[1].lower()  # noqa: PTH122 - a string


def spread(files: Sequence[str], most: int) -> list[str]:
    """Return up to `most` of `files` at equal distances, so that each class has some if folders are classes."""
    step = max(1.0, len(files) / most)
    return [files[int(number * step)] for number in range(min(len(files), most))]


def name(path: str) -> str:
    """Return `path` for files and terminals: bytes that are not UTF-8 are escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


def under(path: Path, skipped: Skipped) -> Iterator[str]:
    """Yield `path`, or the image files below it, as `find` does."""
    if path.is_dir():
        yield from _in_folder(str(path), frozenset(), skipped)
    elif path.exists():
        yield str(path)
    else:
        raise JobError(f"{name(str(path))} does not exist")


def _in_folder(folder: str, above: frozenset[tuple[int, int]], skipped: Skipped) -> Iterator[str]:
    """`above` are device and inode of the parent folders: a link may lead back to one of them."""
    try:
        status = os.stat(folder)  # noqa: PTH116 - strings, not Path objects
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise JobError(f"{name(folder)} cannot be listed: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            is_folder = entry.is_dir(follow_symlinks=False)
            skipped.add("hidden folder" if is_folder else "hidden file", entry.name)
            continue
        dangling = entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 - as above
        if dangling:
            skipped.add("dangling link", entry.name)
        elif entry.is_dir():
            yield from _in_folder(entry.path, above | {here}, skipped)
            continue
        if ending(entry.name) in SUFFIXES and (dangling or entry.is_file()):
            yield entry.path
        elif not dangling:
            skipped.add_other(entry.name)


def _listed(kind: str, count: int, examples: Sequence[str], of: int) -> str:
    """Return the count of a kind with some examples. `of` is the number that they are taken from."""
    more = ", …" if of > len(examples) else ""
    return f"{count} {kind}{'s' * (count != 1)} ({', '.join(examples)}{more})"
