"""How much memory callers can fill with bodies: a limit for all of them together, beside the one for each."""

from __future__ import annotations

from app.http.problems import TooMuchAtOnceError


class BodyBudget:
    """Counts the bytes of bodies from their arrival to the end of their requests. Event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @property
    def held(self) -> int:
        return self._held

    def take(self, count: int) -> None:
        """Raises TooMuchAtOnceError when there is no room for `count` more."""
        if self._held + count > self._limit:
            raise TooMuchAtOnceError(self._limit)
        self._held += count

    def give_back(self, count: int) -> None:
        self._held -= count
