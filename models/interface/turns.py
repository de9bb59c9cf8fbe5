"""Long loops on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

_TURN_S = 0.005


async def in_turns(make: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Return what `make` returns for each item. After each 5 ms the event loop runs its other tasks."""
    made, since = [], perf_counter()
    for item in items:
        made.append(make(item))
        if perf_counter() - since > _TURN_S:
            await asyncio.sleep(0)
            since = perf_counter()
    return made
