"""Operate the service: /v1/models lists, loads and unloads models; /healthz, /readyz and /metrics watch it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.api.api_route import ApiRoute
from app.api.contracts.views import view_named
from app.api.dependencies import (
    Parts,
    TheRuntime,
    admin_allowed,
    check_ready,
    inference_allowed,
    metrics_allowed,
    parts_of,
)
from app.api.openapi import responses
from app.api.schemas import (
    Health,
    IndexDescription,
    ListedModel,
    ModelDescription,
    ModelList,
    ModelSource,
    RequestLimits,
)
from app.api.uploads import BODY_ERRORS, read_json
from app.http.problems import (
    ForbiddenError,
    NotReadyError,
    UnauthorizedError,
)
from models.images.formats import FORMATS
from models.interface import errors
from models.interface.errors import UnknownModelError
from models.interface.model_sources import MODEL_NAME, OPERATIONS
from models.interface.results import ModelCard

_READ_ERRORS = (UnauthorizedError, ForbiddenError)

_LOAD_ERRORS: tuple[type[Exception], ...] = (
    *_READ_ERRORS,
    *BODY_ERRORS,
    UnknownModelError,
    errors.ModelNotLoadedError,
    errors.NoRoomError,
    errors.LoadTimeoutError,
    errors.ModelChangingError,
    errors.TooManyModelsError,
    errors.DrainingError,
)

_UNLOAD_ERRORS: tuple[type[Exception], ...] = (
    *_READ_ERRORS,
    UnknownModelError,
    errors.ModelChangingError,
    errors.LastModelError,
    errors.DrainingError,
)

_SOURCE_BODY: dict[str, Any] = {
    "requestBody": {"required": False, "content": {"application/json": {"schema": ModelSource.model_json_schema()}}}
}

ModelName = Annotated[str, Path(pattern=f"^{MODEL_NAME}$", max_length=128, description="name of the served model")]


class ModelRoute(ApiRoute):
    """A route of one model. Paths of operations on a model, such as /v1/models/NAME:predict, belong to the adapters of
    other protocols, whatever the method."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.NONE, {}) if scope["path"].endswith(OPERATIONS) else super().matches(scope)


models = APIRouter(prefix="/v1/models", tags=["models"], route_class=ModelRoute)


@models.get("", responses=responses(*_READ_ERRORS), dependencies=[Depends(inference_allowed)])
async def list_models(request: Request, runtime: TheRuntime) -> ModelList:
    """List the served models, the default first, and the limits of a request."""
    parts = parts_of(request)
    cards = runtime.cards.values()
    limits = RequestLimits(
        images=parts.settings.max_images_per_request,
        image_bytes=parts.settings.max_image_bytes,
        request_bytes=parts.settings.max_request_bytes,
        image_formats=list(FORMATS),
    )
    return ModelList(
        models=[_description(card, parts) for card in cards],
        data=[ListedModel(id=card.name, created=parts.created_at) for card in cards],
        limits=limits,
    )


# Names may contain slashes, for example timm/resnet18.
@models.get(
    "/{name:path}", responses=responses(*_READ_ERRORS, UnknownModelError), dependencies=[Depends(inference_allowed)]
)
async def describe_model(request: Request, runtime: TheRuntime, name: str) -> ModelDescription:
    """Describe one served model. The name may be that of a view, which is the answer's `id`."""
    view = view_named(runtime, name)
    return _description(view.model, parts_of(request), view.name)


@models.post(
    "/{name:path}",
    responses={
        201: {"description": "The name was not served before", "model": ModelDescription},
        **responses(*_LOAD_ERRORS),
    },
    openapi_extra=_SOURCE_BODY,
    dependencies=[Depends(admin_allowed)],
)
async def load_model(request: Request, response: Response, runtime: TheRuntime, name: ModelName) -> ModelDescription:
    """Load a model, or a new version of a served one.

    The model is loaded and warmed up while the others keep serving, then replaces the previous version atomically. The
    previous version answers its accepted requests and is unloaded before this request returns. Loading takes seconds or
    minutes and continues if the client disconnects. If it fails, the previous version keeps serving.
    """
    stated = await read_json(request, ModelSource)
    loaded = await runtime.load(name, None if stated is None else stated.source)
    response.status_code = 200 if loaded.replaced else 201
    return _description(loaded.card, parts_of(request))


@models.delete(
    "/{name:path}",
    status_code=204,
    # Without a body it has no Content-Type; openai would parse the body.
    response_class=Response,
    responses=responses(*_UNLOAD_ERRORS),
    dependencies=[Depends(admin_allowed)],
)
async def unload_model(runtime: TheRuntime, name: ModelName) -> None:
    """Unload a model. It answers its accepted requests; its memory is released before this request returns. If it was
    the default, the next in the list becomes the default. The last model cannot be unloaded."""
    await runtime.unload(name)


def _description(card: ModelCard, parts: Parts, name: str | None = None) -> ModelDescription:
    described = asdict(card)
    # Published as a metric: it describes this process, not the model.
    del described["load_seconds"]
    index, search = parts.search_index, None
    if index is not None and index.manifest.fingerprint == card.fingerprint:
        search = IndexDescription.model_validate(index.manifest)
    ready = parts.runtime is not None and card.name not in parts.runtime.down
    return ModelDescription(id=name or card.name, created=parts.created_at, **described, ready=ready, search=search)


probes = APIRouter(tags=["operation"], route_class=ApiRoute)

_TEXT = {"schema": {"type": "string"}}
_EXPOSITION: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": _TEXT, "application/openmetrics-text": _TEXT}},
    **responses(UnauthorizedError, ForbiddenError),
}


@probes.get("/healthz", responses=responses())
async def healthz() -> Health:
    """The process is alive."""
    return Health(status="alive")


@probes.get("/readyz", responses=responses(NotReadyError))
async def readyz(request: Request) -> Health:
    """All models are warmed up, their threads are alive, and the service is not draining."""
    check_ready(request)
    return Health(status="ready")


@probes.get("/metrics", response_class=Response, responses=_EXPOSITION, dependencies=[Depends(metrics_allowed)])
async def metrics(request: Request) -> Response:
    """All metrics, in the Prometheus text format or OpenMetrics, as the Accept header requests. Scrapes within
    GRADLESS_METRICS_MAX_AGE_S get the same exposition."""
    body, content_type = await parts_of(request).scraped.exposition(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})
