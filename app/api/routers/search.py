"""POST /v1/search: return the indexed images most similar to images, and their thumbnails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.api.api_route import ApiRoute
from app.api.dependencies import ImageUpload, inference_allowed, parts_of
from app.api.inference import IMAGE_BODY, SEARCH, infer, result_bodies
from app.api.openapi import responses
from app.api.schemas import Found, Neighbour, Neighbours
from app.http.problems import NOT_FOUND, ForbiddenError, NoSearchIndexError, UnauthorizedError
from app.observability.request_record import record_of
from models.interface.errors import ImageError
from models.interface.request import InferenceRequest
from models.interface.results import Prediction
from models.search.index import SearchIndex

_JPEG = "image/jpeg"
_THUMBNAIL: dict[int | str, dict[str, Any]] = {
    200: {"content": {_JPEG: {"schema": {"type": "string", "format": "binary"}}}}
}
# Short, because after a restart a row may have another thumbnail.
_CACHED = {"Cache-Control": "private, max-age=60"}


router = APIRouter(tags=["search"], route_class=ApiRoute, dependencies=[Depends(inference_allowed)])


async def search_index_of(request: Request) -> SearchIndex:
    """Return the index of the process. Raises NoSearchIndexError."""
    index = parts_of(request).search_index
    if index is None:
        raise NoSearchIndexError
    return index


# As a dependency of the route, which runs before the upload is checked.
TheIndex = Annotated[SearchIndex, Depends(search_index_of)]


@router.post(SEARCH.path, responses=responses(*SEARCH.errors), openapi_extra=IMAGE_BODY)
async def search(
    index: TheIndex,
    upload: ImageUpload,
    k: Annotated[int, Query(ge=1, le=100, description="maximum neighbours per image")] = 10,
) -> Neighbours:
    """Find the indexed images most similar to one image or several, by cosine similarity of feature vectors.

    Needs an index (GRADLESS_SEARCH_INDEX), and serves the model that made its vectors.
    """
    _check_fingerprint(index, upload.model.fingerprint)
    answer = await infer(upload, InferenceRequest(SEARCH.task))
    # Checked again: another version of the model may have been loaded in the meantime.
    _check_fingerprint(index, answer.fingerprint)
    found = iter(await _find_neighbours(upload.request, index, answer.results, k))
    return Neighbours(
        model=answer.model,
        fingerprint=answer.fingerprint,
        indexed=index.manifest.rows,
        results=await result_bodies(upload, answer, lambda _: next(found)),
    )


@router.get(
    f"{SEARCH.path}/thumbnails/{{row}}",
    response_class=Response,
    responses={**_THUMBNAIL, **responses(UnauthorizedError, ForbiddenError, NoSearchIndexError, NOT_FOUND)},
)
async def thumbnail(index: TheIndex, row: Annotated[int, Path(ge=0, description="row of a neighbour")]) -> Response:
    """Return the thumbnail of an indexed image. It is stored in the index, not in a file."""
    picture = index.thumbnail(row)
    if picture is None:
        raise HTTPException(NOT_FOUND.status)
    return Response(picture, media_type=_JPEG, headers=_CACHED)


async def _find_neighbours(
    request: Request, index: SearchIndex, results: Sequence[Prediction | ImageError], k: int
) -> list[Found]:
    """Return the neighbours of each image with features, in order."""
    vectors = [result.features for result in results if isinstance(result, Prediction)]
    if not vectors:
        return []
    started_at = perf_counter()
    # In a thread: a search takes up to some milliseconds per image.
    found = await asyncio.to_thread(index.search, np.stack(vectors), k)
    record_of(request.scope).add_lookup(started_at)
    return [Found(neighbours=[Neighbour.model_validate(each) for each in neighbours]) for neighbours in found]


def _check_fingerprint(index: SearchIndex, fingerprint: str) -> None:
    """Raise NoSearchIndexError unless the model with `fingerprint` made the vectors of the index."""
    if index.manifest.fingerprint != fingerprint:
        raise NoSearchIndexError(index.manifest.model)
