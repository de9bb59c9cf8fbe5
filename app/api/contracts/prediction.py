"""From a request of another protocol to the predictions of its images, along the path of the native routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from app.api.contracts.views import View, check_version, model_of, view_of
from app.api.dependencies import Upload, upload_of
from app.api.inference import infer_images
from app.http.problems import FaultyImageError, InvalidInputError
from app.observability.request_record import record_of
from models.interface.errors import ImageError, ImageTooLargeError
from models.interface.request import Image, InferenceRequest
from models.interface.results import Answer, Prediction

# As of POST /v1/classify.
DEFAULT_TOP_K = 5
_MAX_TOP_K = 1000


async def upload_for(request: Request, name: str | None, version: str | None = None) -> tuple[Upload, View]:
    """Check a request for the view called `name` before its body is read; None is the default model.

    Raises UnauthorizedError, ForbiddenError, DrainingError, UnknownModelError, UnknownVersionError,
    FingerprintMismatchError.
    """
    model = None if name is None else model_of(name)
    upload = await upload_of(request, model, request.headers.get("if-match"))
    view = view_of(upload.model, name)
    if version is not None:
        check_version(upload.model, version)
    return upload, view


async def predict(
    upload: Upload, images: Sequence[Image | ImageTooLargeError], request: InferenceRequest
) -> tuple[Answer, Sequence[Prediction]]:
    """Return the answer to `request` and the prediction of each of `images`, in order. The request fails as a whole if
    an image is at fault: these protocols have no place for one image's error.

    Raises FaultyImageError, FingerprintMismatchError, ClientDisconnectedError, and what Runtime.predict raises.
    """
    answer = await infer_images(upload, images, request)
    item = record_of(upload.request.scope).contract.item
    predictions = []
    for position, result in enumerate(answer.results):
        if isinstance(result, ImageError):
            raise FaultyImageError(item.format(position), result)
        predictions.append(result)
    return answer, predictions


def parameters_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object `parameters` of a JSON body. Raises InvalidInputError."""
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidInputError("parameters must be an object.")
    return parameters


def top_k_of(parameters: Mapping[str, Any]) -> int:
    """Return how many classes an image gets. Raises InvalidInputError."""
    top_k = parameters.get("top_k")
    if top_k is None:
        return DEFAULT_TOP_K
    # True is an int.
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= _MAX_TOP_K:
        raise InvalidInputError(f"top_k must be a whole number from 1 to {_MAX_TOP_K}.")
    return top_k
