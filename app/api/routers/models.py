"""/v1/models: what is served, and how; and, for those who may, loading, reloading and unloading it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import Response

from app.api.api_route import ApiRoute
from app.api.dependencies import TheRuntime, admin_allowed, card_named, inference_allowed, parts_of
from app.api.openapi import responses
from app.api.schemas import IndexDescription, ModelDescription, ModelList, ModelSource
from app.api.uploads import read_small
from app.http.problems import (
    BodyTooLargeError,
    ContentEncodingError,
    ForbiddenError,
    SlowBodyError,
    TooMuchAtOnceError,
    UnauthorizedError,
)
from models.interface import errors
from models.interface.errors import UnknownModelError
from models.interface.results import ModelCard
from models.search.index import SearchIndex

_ASKING = (UnauthorizedError, ForbiddenError)

_LOADING: tuple[type[Exception], ...] = (
    *_ASKING,
    ContentEncodingError,
    BodyTooLargeError,
    SlowBodyError,
    TooMuchAtOnceError,
    UnknownModelError,
    errors.ModelNotLoadedError,
    errors.NoRoomError,
    errors.LoadTimeoutError,
    errors.ModelChangingError,
    errors.TooManyModelsError,
    errors.DrainingError,
)

_UNLOADING: tuple[type[Exception], ...] = (
    *_ASKING,
    UnknownModelError,
    errors.ModelChangingError,
    errors.LastModelError,
    errors.DrainingError,
)

_SOURCE: dict[str, Any] = {
    "requestBody": {"required": False, "content": {"application/json": {"schema": ModelSource.model_json_schema()}}}
}

# Words joined by slashes, as timm/resnet18 and resnet50:random are: it stands in addresses, logs and metrics.
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*(/[A-Za-z0-9_][A-Za-z0-9_.:-]*)*$"

ModelName = Annotated[str, Path(pattern=_NAME, max_length=128, description="the name that it is served under")]

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=ApiRoute)


@router.get("", responses=responses(*_ASKING), dependencies=[Depends(inference_allowed)])
async def list_models(request: Request, runtime: TheRuntime) -> ModelList:
    """Every served model, the default first."""
    index = parts_of(request).search_index
    return ModelList(models=[_description(card, index) for card in runtime.cards.values()])


# Names may have slashes in them, as timm/resnet18 has.
@router.get("/{name:path}", responses=responses(*_ASKING, UnknownModelError), dependencies=[Depends(inference_allowed)])
async def describe_model(request: Request, runtime: TheRuntime, name: str) -> ModelDescription:
    """One served model."""
    return _description(card_named(runtime, name), parts_of(request).search_index)


@router.post(
    "/{name:path}",
    responses={201: {"description": "It was not served before", "model": ModelDescription}, **responses(*_LOADING)},
    openapi_extra=_SOURCE,
    dependencies=[Depends(admin_allowed)],
)
async def load_model(request: Request, response: Response, runtime: TheRuntime, name: ModelName) -> ModelDescription:
    """Load a model, or a new version of one that is served.

    It is loaded and warmed up beside the others, then takes over at once; the version before answers what it has
    accepted, and is gone when this answers. That takes as long as loading does, seconds or minutes, and goes on when
    the caller leaves. If it fails, what was served before still is.
    """
    source = await _stated_source(request)
    loaded = await runtime.load(name, source)
    response.status_code = 200 if loaded.replaced else 201
    return _description(loaded.card, parts_of(request).search_index)


@router.delete(
    "/{name:path}",
    status_code=204,
    responses=responses(*_UNLOADING),
    dependencies=[Depends(admin_allowed)],
)
async def unload_model(runtime: TheRuntime, name: ModelName) -> None:
    """Unload a model. It takes nothing new, answers what it has accepted, and its memory is given back when this
    answers. If it was the default, the next in the list is; the last model stays."""
    await runtime.unload(name)


async def _stated_source(request: Request) -> str | None:
    body = await read_small(request, timeout_s=parts_of(request).settings.read_timeout_s)
    if not body:
        return None
    try:
        return ModelSource.model_validate_json(body).source
    except ValidationError as error:
        faults = error.errors(include_context=False)
        # JSON that is none is at fault as a whole.
        located = [{**fault, "loc": ("body", *(fault["loc"] or ("body",)))} for fault in faults]
        raise RequestValidationError(located) from None


def _description(card: ModelCard, index: SearchIndex | None) -> ModelDescription:
    described = asdict(card)
    # A fact of this process's start, not of the model: it is a metric.
    del described["load_seconds"]
    return ModelDescription(**described, search=_description_of_index(index, card.fingerprint))


def _description_of_index(index: SearchIndex | None, fingerprint: str) -> IndexDescription | None:
    if index is None or index.manifest.fingerprint != fingerprint:
        return None
    about = index.manifest
    return IndexDescription(rows=about.rows, exact=about.exact, recall=about.recall, thumbnails=about.thumbnails)
