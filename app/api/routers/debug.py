"""POST /debug/grad-modes: what this model's forward would cost with gradients, beside what it costs as served."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from app.api.api_route import ApiRoute
from app.api.dependencies import TheRuntime, debug_allowed
from app.api.lens_events import EVENT_STREAM, streamed
from app.api.lens_request import asked, body_document
from app.api.lens_schemas import GradModes, GradModesQuery
from app.api.openapi import responses
from app.api.uploads import UPLOAD_ERRORS
from app.http.accept import accepts
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
    openapi_extra=body_document(),
)
async def grad_modes(
    request: Request, runtime: TheRuntime, query: Annotated[GradModesQuery, Query()]
) -> GradModes | Response:
    """Run one batch through each arm: the autograd modes, frozen parameters, train mode, and what is served.

    Parameters may come as a JSON body; any other body is an image to compare on. With `Accept: text/event-stream`
    progress is told as it goes. Ends when its caller leaves.
    """
    question = await asked(request, runtime, query)
    compare = partial(runtime.compare, question.model, question.options, question.image)
    if accepts(request.headers.get("accept", ""), EVENT_STREAM):
        return await streamed(request, compare)
    return GradModes.model_validate(await run_until_disconnect(request, compare(lambda _: None)))
