"""Hugging Face's Inference Endpoints: POST / for the default model, POST /hf/MODEL for any.

A client posts to exactly the address that it was given, so one route serves two tasks: classification, and feature
extraction if the model's view, `?task=feature-extraction` or the key `normalize` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from app.api.contracts.adapter import (
    IMAGES,
    contract_router,
    parameters_of,
    predict,
    query_value,
    top_k_of,
    upload_for,
)
from app.api.dependencies import check_ready
from app.api.inference import scaled
from app.api.json_images import images_of, parse_object
from app.api.uploads import read_json_or_images
from app.http.contract import Contract, json_errors, text_error
from app.http.problems import InvalidInputError
from models.interface.errors import ImageTooLargeError
from models.interface.request import InferenceRequest
from models.interface.results import Prediction

_CLASSIFICATION = "image-classification"
_EXTRACTION = "feature-extraction"
_TASKS = (_CLASSIFICATION, _EXTRACTION)

router = contract_router(Contract("huggingface", json_errors(text_error)))


@dataclass(frozen=True, slots=True)
class _Sent:
    """The images of a body, whether they are a list, and the JSON object that had them."""

    images: Sequence[bytes | ImageTooLargeError]
    several: bool
    body: Mapping[str, Any] = field(default_factory=dict)


@router.get("/health")
async def health(request: Request) -> object:
    """The health check of Inference Endpoints."""
    check_ready(request)
    return {"status": "ready"}


@router.post("/", tags=[IMAGES])
@router.post("/hf/{name:path}", tags=[IMAGES])
async def infer(request: Request, name: str | None = None) -> object:
    """Return the classes or the features of the images in the body. Without a name the default model answers.

    Raises what upload_for, read_json_or_images, images_of and predict raise.
    """
    upload, view = await upload_for(request, name)
    usual = _EXTRACTION if view.output == "features" else _CLASSIFICATION
    stated = query_value(request, "task")
    task = usual if stated is None else stated
    if task not in _TASKS:
        raise InvalidInputError(f"task must be {' or '.join(_TASKS)}.")
    sent = await _read(request)
    # Clients name no task, but classification has no such key.
    if task == _EXTRACTION or "normalize" in sent.body:
        normalize = _normalize(sent.body)
        _, found = await predict(upload, sent.images, InferenceRequest("features"))
        # A list of vectors even for one image.
        return [scaled(each.features, normalize=normalize).tolist() for each in found]
    parameters = parameters_of(sent.body)
    if parameters.get("function_to_apply") not in (None, "softmax"):
        raise InvalidInputError("function_to_apply must be softmax.")
    _, found = await predict(upload, sent.images, InferenceRequest("classify", top_k=top_k_of(parameters)))
    classes = [_classes(each) for each in found]
    return classes if sent.several else classes[0]


async def _read(request: Request) -> _Sent:
    received = await read_json_or_images(request)
    if received.json is None:
        return _Sent(received.files, len(received.files) > 1)
    body = await parse_object(request, received.json)
    inputs = body.get("inputs")
    texts = inputs if isinstance(inputs, list) else [inputs]
    return _Sent(await images_of(request, texts), texts is inputs, body)


def _normalize(body: Mapping[str, Any]) -> bool:
    """Return whether vectors get length 1. Raises InvalidInputError."""
    normalize = body.get("normalize")
    if normalize not in (None, True, False):
        raise InvalidInputError("normalize must be true or false.")
    return bool(normalize)


def _classes(prediction: Prediction) -> list[dict[str, object]]:
    return [{"label": scored.label, "score": scored.probability} for scored in prediction.classes]
