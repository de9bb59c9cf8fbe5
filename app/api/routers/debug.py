"""POST /debug/grad-modes: compare the cost of a model's forward in each autograd mode and as served."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from app.api.api_route import ApiRoute
from app.api.dependencies import TheRuntime, accepts, debug_allowed
from app.api.lens_events import EVENT_STREAM, stream_comparison
from app.api.lens_request import read_lens_request, request_body
from app.api.lens_schemas import GradModes, GradModesQuery
from app.api.openapi import responses
from app.api.uploads import UPLOAD_ERRORS
from app.http.disconnect import run_until_disconnect
from app.http.problems import DebugDisabledError, ForbiddenError, UnauthorizedError
from models.interface.errors import (
    ComparisonRunningError,
    ComparisonTooLargeError,
    DrainingError,
    ModelDownError,
    ModelGoneError,
    UnknownModelError,
)

_ERRORS: tuple[type[Exception], ...] = (
    DebugDisabledError,
    UnauthorizedError,
    ForbiddenError,
    *UPLOAD_ERRORS,
    UnknownModelError,
    ComparisonRunningError,
    ComparisonTooLargeError,
    DrainingError,
    ModelDownError,
    ModelGoneError,
)

_EVENTS = {"schema": {"type": "string", "description": "events `progress`, then one `report` or `problem`"}}

router = APIRouter(prefix="/debug", tags=["debug"], dependencies=[Depends(debug_allowed)], route_class=ApiRoute)


@router.post(
    "/grad-modes",
    response_model=GradModes,
    responses={200: {"content": {EVENT_STREAM: _EVENTS}}, **responses(*_ERRORS)},
    openapi_extra=request_body(),
)
async def grad_modes(
    request: Request, runtime: TheRuntime, query: Annotated[GradModesQuery, Query()]
) -> GradModes | Response:
    """Run one batch through each arm: the autograd modes, frozen parameters, train mode, and the served backend.

    Parameters may be sent as a JSON body; any other body is the image to compare on. With `Accept: text/event-stream`
    the response reports progress. The comparison ends if the client disconnects.
    """
    lens_request = await read_lens_request(request, runtime, query)
    compare = partial(runtime.compare, lens_request.model, lens_request.options, lens_request.image)
    if accepts(request, EVENT_STREAM):
        return await stream_comparison(request, compare)
    return GradModes.model_validate(await run_until_disconnect(request, compare(lambda _: None)))
