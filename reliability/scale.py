"""The size of each load."""

from __future__ import annotations

from typing import NamedTuple

FULL_SECONDS = 120.0
FULL_SIGTERMS = 50


class Scale(NamedTuple):
    """Seconds of the longest load; a shorter one shrinks the counts of the others in proportion."""

    seconds: float = FULL_SECONDS
    sigterms: int = FULL_SIGTERMS

    @property
    def share(self) -> float:
        """Share of the full load, at most 1: a longer load does not raise counts."""
        return min(1.0, self.seconds / FULL_SECONDS)

    def count(self, full: int, least: int = 1) -> int:
        """Return `full` or its share, at least `least`."""
        return max(least, round(full * self.share))
