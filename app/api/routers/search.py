"""POST /v1/search: images in, the indexed images most like them out; and the small pictures that the index keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.api.api_route import ApiRoute
from app.api.dependencies import ImageUpload, inference_allowed
from app.api.error_responses import image_problem
from app.api.image_endpoints import IMAGE_BODY, SEARCH
from app.api.image_route import ImageRoute
from app.api.inference import answered
from app.api.openapi import responses
from app.api.schemas import Faulty, Found, Neighbour, Neighbours
from app.api.search_index import search_index_for, search_index_of
from app.http.problems import NOT_FOUND, ForbiddenError, NoSearchIndexError, UnauthorizedError
from app.observability.request_record import record_of
from models.interface.errors import ImageError
from models.interface.results import Prediction
from models.search.index import SearchIndex

_JPEG = "image/jpeg"
_THUMBNAIL: dict[int | str, dict[str, Any]] = {
    200: {"content": {_JPEG: {"schema": {"type": "string", "format": "binary"}}}}
}
# As long as somebody looks at an answer. After a restart a row may be another picture.
_CACHED = {"Cache-Control": "private, max-age=60"}


class _SearchRoute(ImageRoute):
    """Refuses before a body is read where there is nothing to search."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_where_indexed(request: Request) -> Response:
            await inference_allowed(request)
            search_index_of(request)
            return await handle(request)

        return handle_where_indexed


router = APIRouter(tags=["search"], route_class=_SearchRoute)


@router.post(SEARCH.path, responses=responses(*SEARCH.errors), openapi_extra=IMAGE_BODY)
async def search(
    upload: ImageUpload, k: Annotated[int, Query(ge=1, le=100, description="neighbours of an image, at most")] = 10
) -> Neighbours:
    """Find the indexed images most like one image or several, by the cosine of their feature vectors.

    Where GRADLESS_SEARCH_INDEX names an index, for the model that made its vectors.
    """
    search_index_for(upload.request, upload.model.fingerprint)
    answer = await answered(upload, task=SEARCH.task, top_k=0)
    # Anew: another version of the model may have answered than was there before.
    index = search_index_for(upload.request, answer.fingerprint)
    found = iter(await _looked_up(upload.request, index, answer.results, k))
    return Neighbours(
        model=answer.model,
        fingerprint=answer.fingerprint,
        indexed=index.manifest.rows,
        results=[
            Faulty(error=image_problem(upload.metrics, result)) if isinstance(result, ImageError) else next(found)
            for result in answer.results
        ],
    )


async def thumbnail(request: Request, row: Annotated[int, Path(ge=0, description="of a neighbour")]) -> Response:
    """The small picture that the index keeps of an image: a part of the index, no file of the disk."""
    picture = search_index_of(request).thumbnail(row)
    if picture is None:
        raise HTTPException(NOT_FOUND.status)
    return Response(picture, media_type=_JPEG, headers=_CACHED)


router.add_api_route(
    f"{SEARCH.path}/thumbnails/{{row}}",
    thumbnail,
    response_class=Response,
    responses={**_THUMBNAIL, **responses(UnauthorizedError, ForbiddenError, NoSearchIndexError, NOT_FOUND)},
    dependencies=[Depends(inference_allowed)],
    # It has no image to read.
    route_class_override=ApiRoute,
)


async def _looked_up(
    request: Request, index: SearchIndex, results: Sequence[Prediction | ImageError], k: int
) -> list[Found]:
    """The neighbours of those images that have features, in their order."""
    vectors = [result.features for result in results if isinstance(result, Prediction)]
    if not vectors:
        return []
    started_at = perf_counter()
    # Off the event loop: up to some milliseconds an image.
    found = await asyncio.to_thread(index.search, np.stack(vectors), k)
    record_of(request.scope).add_lookup(started_at)
    return [
        Found(
            neighbours=[
                Neighbour(row=each.row, path=each.path, similarity=each.similarity, thumbnail=each.thumbnail)
                for each in neighbours
            ]
        )
        for neighbours in found
    ]
