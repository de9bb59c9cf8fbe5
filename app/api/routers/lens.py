"""POST /debug/grad-modes: compare the cost of a model's forward in each autograd mode and as served.

With `Accept: text/event-stream` the response is a stream of server-sent events: progress, then the report or a problem.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.api_route import ApiRoute
from app.api.dependencies import TheRuntime, accepts, card_named, debug_allowed
from app.api.error_responses import event_problem
from app.api.openapi import image_content, responses
from app.api.schemas import GradModes, GradModesQuery, GradModesRequest, Progress
from app.api.uploads import UPLOAD_ERRORS, content_type_of, read_images, read_json
from app.http.disconnect import run_until_disconnect
from app.http.problems import DebugDisabledError, ForbiddenError, TooManyImagesError, UnauthorizedError
from gradless import records
from gradless.records import Comparison, ComparisonOptions
from models.interface import errors
from models.interface.errors import DrainingError, ImageTooLargeError
from models.interface.runtime import Runtime

_EVENT_STREAM = "text/event-stream"

# Proxies commonly close a connection that has been idle for 30 s.
_KEEP_ALIVE_S = 10.0

_ERRORS: tuple[type[Exception], ...] = (
    DebugDisabledError,
    UnauthorizedError,
    ForbiddenError,
    *UPLOAD_ERRORS,
    errors.UnknownModelError,
    errors.ComparisonRunningError,
    errors.ComparisonTooLargeError,
    DrainingError,
    errors.ModelDownError,
    errors.ModelGoneError,
)

_EVENTS = {"schema": {"type": "string", "description": "events `progress`, then one `report` or `problem`"}}

_BODY = {
    "requestBody": {
        "required": False,
        "description": "The parameters as JSON, or one image to compare on, as the body or as a multipart file.",
        "content": {"application/json": {"schema": GradModesRequest.model_json_schema()}, **image_content(maxItems=1)},
    }
}

OnProgress = Callable[[records.Progress], None]

router = APIRouter(prefix="/debug", tags=["debug"], dependencies=[Depends(debug_allowed)], route_class=ApiRoute)


@router.post(
    "/grad-modes",
    response_model=GradModes,
    responses={200: {"content": {_EVENT_STREAM: _EVENTS}}, **responses(*_ERRORS)},
    openapi_extra=_BODY,
)
async def grad_modes(
    request: Request, runtime: TheRuntime, query: Annotated[GradModesQuery, Query()]
) -> GradModes | Response:
    """Run one batch through each arm: the autograd modes, frozen parameters, train mode, and the served backend.

    Parameters may be sent as a JSON body; any other body is the image to compare on. With `Accept: text/event-stream`
    the response reports progress. The comparison ends if the client disconnects.
    """
    compare = partial(runtime.compare, *await _read(request, runtime, query))
    if accepts(request, _EVENT_STREAM):
        return await stream_comparison(request, compare)
    return GradModes.model_validate(await run_until_disconnect(request, compare(lambda _: None)))


async def _read(
    request: Request, runtime: Runtime, query: GradModesQuery
) -> tuple[str, ComparisonOptions, bytes | None]:
    """Return model, options and image of the request. Raises UnknownModelError, the errors of reading a body, and
    RequestValidationError for invalid JSON."""
    # Checked before the body, so that a client with a wrong model name need not send it.
    card = card_named(runtime, query.model)
    content_type, _ = content_type_of(request.headers)
    if content_type == b"application/json":
        stated = await read_json(request, GradModesRequest)
        if stated is not None:
            query = query.model_copy(update={name: getattr(stated, name) for name in stated.model_fields_set})
        return card_named(runtime, query.model).name, query.options(), None
    images = await read_images(request)
    if len(images) > 1:
        raise TooManyImagesError(1)
    image = images[0]
    if isinstance(image, ImageTooLargeError):
        raise image
    # Without a body the image is empty.
    return card.name, query.options(), image or None


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
        super().__init__(self._events(first), headers=headers, media_type=_EVENT_STREAM)
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
            yield format_sse_event(event="progress", data_str=Progress.model_validate(update).model_dump_json())
            while not (received := await self._next_update()):
                yield KEEPALIVE_COMMENT
            (update,) = received
        try:
            report = GradModes.model_validate(_result(self._work))
        except Exception as error:  # noqa: BLE001 - the status has been sent: an event reports any error
            yield format_sse_event(event="problem", data_str=event_problem(self._request, error))
        else:
            yield format_sse_event(event="report", data_str=report.model_dump_json())

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
