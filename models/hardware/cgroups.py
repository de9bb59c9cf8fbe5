"""Memory limits of a container: those of the control groups (cgroups) of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")

# Version 1 states "no limit" as a number above any machine's memory; version 2 as "max".
_NO_LIMIT = 2**62


class MemoryLimit(NamedTuple):
    """The limit of one control group, and what its processes have not used of it, both in bytes."""

    limit: int
    room: int


def memory_limits() -> Iterator[MemoryLimit]:
    """Yield the limit of each control group of this process that has one, for cgroups of version 1 and 2."""
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
        # A limit also holds for the groups below. In a container the path may be the host's, and only the top exists.
        for folder in (group, *group.parents):
            if (found := _limit(folder, files)) is not None:
                yield found
            if folder == top:
                break


class _Files(NamedTuple):
    """File names of a cgroup version: limit and use in bytes, and the key in memory.stat of file pages not used lately,
    which the kernel reclaims on demand."""

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
