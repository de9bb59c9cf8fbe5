"""The table of endpoints that accept images, and how they are answered: read, infer, record, cancel on a disconnect."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.api.dependencies import Upload, parts_of
from app.api.error_responses import image_problem
from app.api.json_images import images_of_body
from app.api.openapi import image_content
from app.api.schemas import Faulty
from app.api.uploads import UPLOAD_ERRORS, read_json_or_images
from app.http.disconnect import cancel_token_of, run_until_disconnect
from app.http.problems import (
    TABLE,
    FingerprintMismatchError,
    ForbiddenError,
    InvalidInputError,
    NoSearchIndexError,
    UnauthorizedError,
)
from app.observability.request_record import record_of
from models.images.formats import FORMATS
from models.interface import errors
from models.interface.errors import ImageError, ImageTooLargeError, NoClassesError
from models.interface.request import Image, InferenceRequest
from models.interface.results import Answer, Prediction
from models.interface.telemetry import Task
from models.interface.turns import in_turns

T = TypeVar("T")

PREDICTION_ERRORS: tuple[type[Exception], ...] = (
    UnauthorizedError,
    ForbiddenError,
    FingerprintMismatchError,
    *UPLOAD_ERRORS,
    InvalidInputError,
    errors.UnknownModelError,
    errors.NotFiniteError,
    *(each for each in TABLE if issubclass(each, errors.AtCapacityError) and each not in UPLOAD_ERRORS),
    errors.DrainingError,
    errors.ModelDownError,
    errors.OutOfMemoryError,
    errors.DeadlineExceededError,
)

_JSON_BODY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "images": {
            "type": "array",
            "items": {"type": "string", "description": "base64 of an image file, or a data URI"},
            "minItems": 1,
        }
    },
    "required": ["images"],
    "additionalProperties": False,
}

# The OpenAPI request body of every endpoint.
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": f"One image file ({', '.join(FORMATS)}), or several as multipart files or in JSON.",
        "content": {**image_content(), "application/json": {"schema": _JSON_BODY}},
    }
}


@dataclass(frozen=True, slots=True)
class ImageEndpoint:
    """A POST endpoint that accepts images. `task` is the task of the runtime and a label of the metrics; requests for
    features alone have the task of FEATURES. `sheddable` endpoints have one task; of the checks before admission that a
    refusal at the headers would skip, load shedding repeats that for classes."""

    path: str
    task: Task
    errors: tuple[type[Exception], ...]
    sheddable: bool


CLASSIFY = ImageEndpoint("/v1/classify", "classify", (*PREDICTION_ERRORS, NoClassesError), sheddable=True)
FEATURES = ImageEndpoint("/v1/features", "features", PREDICTION_ERRORS, sheddable=True)
# The query and the model decide the task.
PREDICT = ImageEndpoint("/v1/predict", "classify", CLASSIFY.errors, sheddable=False)
# A service without an index answers 404, also when it is overloaded.
SEARCH = ImageEndpoint("/v1/search", "search", (NoSearchIndexError, *PREDICTION_ERRORS), sheddable=False)

IMAGE_ENDPOINTS = (CLASSIFY, FEATURES, PREDICT, SEARCH)


async def infer(upload: Upload, request: InferenceRequest) -> Answer:
    """Read the images of `upload` and answer `request` with them. Records the times of the request.

    Raises the errors of read_json_or_images and images_of_body, the ImageError of an image that was sent alone, and
    what Runtime.predict raises.
    """
    answer = await infer_images(upload, await _read_images(upload), request)
    if len(answer.results) == 1 and isinstance(answer.results[0], ImageError):
        fault = answer.results[0]
        try:
            raise fault
        finally:
            # The traceback refers to this frame: a cycle would keep the request and its body.
            del answer, fault
    return answer


async def _read_images(upload: Upload) -> Sequence[bytes | ImageTooLargeError]:
    received = await read_json_or_images(upload.request, every_part=False)
    return received.files if received.json is None else await images_of_body(upload.request, received.json)


async def result_bodies(upload: Upload, answer: Answer, body_of: Callable[[Prediction], T]) -> list[T | Faulty]:
    """Return a body for each result. That of an image that failed is its problem."""

    def make(result: Prediction | ImageError) -> T | Faulty:
        if isinstance(result, ImageError):
            return Faulty(error=image_problem(upload.request, result))
        return body_of(result)

    return await in_turns(make, answer.results)


async def infer_images(upload: Upload, sent: Sequence[Image | ImageTooLargeError], request: InferenceRequest) -> Answer:
    """Answer `request` with the images `sent`, whose body has been read. Each has its result or its ImageError.

    Raises FingerprintMismatchError, ClientDisconnectedError, and what Runtime.predict raises.
    """
    record = record_of(upload.request.scope)
    record.start_inference(upload.model.name, request.task, len(sent))
    answer = await _predict(upload, sent, request)
    record.model = answer.model
    upload.check_answer_of(answer.fingerprint)
    record.add_results([result for result in answer.results if isinstance(result, Prediction)])
    return answer


async def _predict(upload: Upload, sent: Sequence[Image | ImageTooLargeError], request: InferenceRequest) -> Answer:
    """Return the runtime's answer, with the errors of images that are too large in their places."""
    images = [image for image in sent if not isinstance(image, ImageTooLargeError)]
    too_large = len(sent) - len(images)
    if too_large:
        parts_of(upload.request).metrics.images_done(upload.model.name, request.task, "bad_image", too_large)
    if images:
        request = replace(request, images=images, cancel_token=cancel_token_of(upload.request))
        # Without a `requested_model` the current default answers, which may be a new one.
        work = upload.runtime.predict(upload.requested_model, request)
        answer = await run_until_disconnect(upload.request, work)
    else:
        card = upload.model
        answer = Answer(card.name, card.fingerprint, card.feature_dimensions, card.feature_shape, [], card.version)
    if not too_large:
        return answer
    results = iter(answer.results)
    in_order = [image if isinstance(image, ImageTooLargeError) else next(results) for image in sent]
    return answer._replace(results=in_order)


def scaled(vector: NDArray[np.float32], *, normalize: bool) -> NDArray[np.float32]:
    """Return `vector`, with `normalize` scaled to length 1; a zero vector as it is."""
    if not normalize:
        return vector
    # In float64, because squares of float32 values can overflow and underflow.
    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / length).astype(np.float32) if length else vector


def base64_of(vector: NDArray[np.float32]) -> str:
    """Return base64 of the numbers as little-endian float32."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
