"""POST /debug/grad-modes: what this model's forward would cost with gradients, beside what it costs as served."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from app.accept import accepts
from app.api_route import ApiRoute
from app.callers import unless_gone
from app.dependencies import TheRuntime, debug_allowed
from app.documents import answers
from app.lens.asking import asked, body_document
from app.lens.events import EVENT_STREAM, streamed
from app.lens.schemas import GradModes, GradModesQuery
from app.problems import DebugDisabledError, ForbiddenError, UnauthorizedError
from app.uploads import UPLOAD_ERRORS
from models.errors import (
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
    responses={200: {"content": {EVENT_STREAM: _EVENTS}}, **answers(*_ERRORS)},
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
    return GradModes.model_validate(await unless_gone(request, compare(lambda _: None)))
