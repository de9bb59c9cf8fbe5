"""Send a comparison as server-sent events: progress, then the report or a problem."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.dependencies import parts_of
from app.api.error_responses import event_problem
from app.api.lens_schemas import GradModes, Progress
from app.http.disconnect import run_until_disconnect
from gradless import records
from gradless.records import Comparison
from models.interface.errors import DrainingError

EVENT_STREAM = "text/event-stream"

# Proxies commonly close a connection that has been idle for 30 s.
_KEEP_ALIVE_S = 10.0

OnProgress = Callable[[records.Progress], None]


async def stream_comparison(
    request: Request, compare: Callable[[OnProgress], Coroutine[Any, Any, Comparison]]
) -> ComparisonStream:
    """Start the comparison and return a stream of its events. `compare` reports progress on the event loop.

    Raises ClientDisconnectedError, and the error of a comparison that fails before its first forward, so that the error
    determines the status of the response.
    """
    updates: asyncio.Queue[records.Progress | None] = asyncio.Queue()
    work = asyncio.ensure_future(compare(updates.put_nowait))
    work.add_done_callback(lambda _: updates.put_nowait(None))
    try:
        first = await run_until_disconnect(request, updates.get())
        if first is None:
            _result(work)
    except BaseException:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        raise
    return ComparisonStream(request, work, updates, first)


class ComparisonStream(StreamingResponse):
    """The events of a running comparison, which is cancelled if the client disconnects."""

    def __init__(
        self,
        request: Request,
        work: asyncio.Future[Comparison],
        updates: asyncio.Queue[records.Progress | None],
        first: records.Progress | None,
    ) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._events(first), headers=headers, media_type=EVENT_STREAM)
        self._request = request
        self._work = work
        self._updates = updates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not in `_events`, which never runs if the client disconnects before the first event.
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def _events(self, update: records.Progress | None) -> AsyncIterator[bytes]:
        while update is not None:
            yield _event("progress", Progress.model_validate(update).model_dump_json())
            while not (received := await self._next_update()):
                yield KEEPALIVE_COMMENT
            (update,) = received
        try:
            report = GradModes.model_validate(_result(self._work))
        except Exception as error:  # noqa: BLE001 - the status has been sent: an event reports any error
            yield _event("problem", event_problem(self._request, parts_of(self._request).metrics, error))
        else:
            yield _event("report", report.model_dump_json())

    async def _next_update(self) -> tuple[records.Progress | None] | None:
        """Return the next update in a tuple, or None after `_KEEP_ALIVE_S` without one."""
        try:
            async with asyncio.timeout(_KEEP_ALIVE_S):
                return (await self._updates.get(),)
        except TimeoutError:
            return None


def _result(work: asyncio.Future[Comparison]) -> Comparison:
    if work.cancelled():
        # Cancelled by the runtime, which was closed.
        raise DrainingError
    return work.result()


def _event(name: str, data: str) -> bytes:
    return format_sse_event(event=name, data_str=data)
