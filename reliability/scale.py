"""How much of each load."""

from __future__ import annotations

from typing import NamedTuple

FULL_SECONDS = 120.0
FULL_SIGTERMS = 50


class Scale(NamedTuple):
    """`seconds` of the longest load; the counts of the others shrink with it."""

    seconds: float = FULL_SECONDS
    sigterms: int = FULL_SIGTERMS

    @property
    def share(self) -> float:
        """Of the full load; 1 at most, so that a longer one lengthens times and leaves counts."""
        return min(1.0, self.seconds / FULL_SECONDS)

    def count(self, full: int, least: int = 1) -> int:
        """As many, or their share."""
        return max(least, round(full * self.share))
