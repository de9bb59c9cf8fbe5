"""Callers leave. FastAPI does not notice by itself: a handler runs on for nobody unless somebody listens."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from app.problems import CallerGoneError
from models.errors import DrainingError

T = TypeVar("T")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller of `request` disconnects first.

    The request's body must have been read to its end. Raises CallerGoneError, and what `work` raises.
    """
    working = asyncio.current_task()
    if working is None:  # pragma: no cover - a coroutine that runs is in a task
        raise RuntimeError("only a task can be cancelled")
    cancelled_before = working.cancelling()
    listener = _Listener(request, working)
    listening = asyncio.ensure_future(listener.listen())
    try:
        return await work
    except asyncio.CancelledError:
        if listener.caller_gone and working.uncancel() <= cancelled_before:
            raise CallerGoneError from None
        if working.cancelling() <= cancelled_before:
            # Not this task but what it waited for: the runtime was closed under it.
            raise DrainingError from None
        raise
    finally:
        # Waited for, so that nothing outlives the request.
        listening.cancel()
        await asyncio.wait([listening])


class _Listener:
    """Cancels a task when the caller of its request disconnects, and remembers to have done so."""

    def __init__(self, request: Request, working: asyncio.Task[Any]) -> None:
        self._request = request
        self._working = working
        self.caller_gone = False

    async def listen(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.caller_gone = True
        self._working.cancel()
