"""Work whose result is shared by all who ask for it within some time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from time import perf_counter
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
T = TypeVar("T")


class SharedWork(Generic[Key, T]):
    """Runs a piece of work once for all who ask for `key` while it runs, and for those who come within `max_age_s`
    seconds of its beginning. Belongs to an event loop. Keys are never forgotten: there must be few."""

    def __init__(self) -> None:
        self._under_way: dict[Key, tuple[float, asyncio.Future[T]]] = {}

    async def result(self, key: Key, work: Callable[[], Awaitable[T]], *, max_age_s: float) -> T:
        """What `work` gives now, or has given at most so long ago. Raises what it raises; then the next who asks
        has it done again. It goes on when those who wait for it are cancelled."""
        began_at, running = self._under_way.get(key, (0.0, None))
        if running is None or (running.done() and (_failed(running) or perf_counter() - began_at >= max_age_s)):
            running = asyncio.ensure_future(work())
            self._under_way[key] = perf_counter(), running
        return await asyncio.shield(running)


def _failed(done: asyncio.Future[T]) -> bool:
    return done.cancelled() or done.exception() is not None
