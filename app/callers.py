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
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallerGoneError
        if working.cancelled():
            # Not by its caller: the runtime was closed under it.
            raise DrainingError
        return working.result()
    finally:
        # Also when this handler itself is cancelled. Both are waited for: nothing outlives the request.
        listening.cancel()
        working.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
