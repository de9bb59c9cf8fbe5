"""GET /healthz, /readyz and /metrics, for orchestrators and Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.api_route import ApiRoute
from app.api.dependencies import metrics_allowed, parts_of
from app.api.openapi import responses
from app.api.schemas import Health
from app.http.problems import ForbiddenError, NotReadyError, UnauthorizedError

router = APIRouter(tags=["operation"], route_class=ApiRoute)

_TEXT = {"schema": {"type": "string"}}
_EXPOSITION: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/plain": _TEXT, "application/openmetrics-text": _TEXT},
    },
    **responses(UnauthorizedError, ForbiddenError),
}


@router.get("/healthz", responses=responses())
async def healthz() -> Health:
    """The process is alive."""
    return Health(status="alive")


@router.get("/readyz", responses=responses(NotReadyError))
async def readyz(request: Request) -> Health:
    """All models are warmed up, their threads are alive, and the service is not draining."""
    runtime = parts_of(request).runtime
    if runtime is None or not runtime.ready:
        raise NotReadyError
    return Health(status="ready")


@router.get("/metrics", response_class=Response, responses=_EXPOSITION, dependencies=[Depends(metrics_allowed)])
async def metrics(request: Request) -> Response:
    """All metrics, in the Prometheus text format or OpenMetrics, as the Accept header requests. Scrapes within
    GRADLESS_METRICS_MAX_AGE_S get the same exposition."""
    body, content_type = await parts_of(request).scraped.exposition(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})
