"""Share the result of a piece of work between all tasks that need it at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from time import perf_counter
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
T = TypeVar("T")


class SharedWork(Generic[Key, T]):
    """Runs work once per key, for all calls during it and within `max_age_s` of its start. Belongs to one event loop.
    Keys are never forgotten, so there must be few."""

    def __init__(self) -> None:
        self._started: dict[Key, tuple[float, asyncio.Future[T]]] = {}

    async def result(self, key: Key, work: Callable[[], Awaitable[T]], *, max_age_s: float) -> T:
        """Return the result of `work`, or of the last work of `key` if it started at most `max_age_s` ago. Raises what
        the work raised; the next call then runs it again. Cancelling a call does not cancel the work."""
        began_at, running = self._started.get(key, (0.0, None))
        if running is None or (running.done() and (_failed(running) or perf_counter() - began_at >= max_age_s)):
            running = asyncio.ensure_future(work())
            self._started[key] = perf_counter(), running
        return await asyncio.shield(running)


def _failed(done: asyncio.Future[T]) -> bool:
    return done.cancelled() or done.exception() is not None
