"""What a container may have of memory: the limits of the control groups that this process is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")

# Version 1 says that there is none by a number that no machine has; version 2 by "max".
_NO_LIMIT = 2**62


class MemoryLimit(NamedTuple):
    """Of one control group, in bytes: the most that all in it may have together, and what is left of that."""

    limit: int
    room: int


def memory_limits() -> Iterator[MemoryLimit]:
    """Those of each control group that this process is in and that has one, be they of version 1, whose memory
    controller has a tree of its own, or of version 2."""
    try:
        lines = _OWN.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        files = {"memory": _VERSION_1, "": _VERSION_2}.get(controllers)
        if files is None:
            continue
        top = _ROOT / files.tree
        group = top / path.lstrip("/")
        # A limit holds for the groups below it. In a container the path may be the host's, and only the top be there.
        for folder in (group, *group.parents):
            if (found := _limit(folder, files)) is not None:
                yield found
            if folder == top:
                break


class _Files(NamedTuple):
    """Where a version of control groups says what: limit and use in bytes, and in its statistics the pages of files
    not used lately, which are given up when somebody needs them."""

    tree: str
    limit: str
    used: str
    reclaimable: str


_VERSION_1 = _Files("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files("", "memory.max", "memory.current", "inactive_file")


def _limit(group: Path, files: _Files) -> MemoryLimit | None:
    try:
        limit = int((group / files.limit).read_text())
        if limit >= _NO_LIMIT:
            return None
        used = int((group / files.used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        # No such group, or no limit.
        return None
    return MemoryLimit(limit, max(0, limit - used + int(statistics.get(files.reclaimable, 0))))
