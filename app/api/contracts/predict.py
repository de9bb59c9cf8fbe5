"""Prediction by file or by JSON, as clients of TorchServe, KServe v1, TensorFlow Serving, Vertex AI, SageMaker and
MLflow send it. One handler reads all bodies; the routes differ in the form of their answer.

An image's prediction is {label: probability}, likeliest first, or a list of numbers where features are asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from starlette.responses import Response

from app.api.contracts.adapter import (
    DEFAULT_TOP_K,
    IMAGES,
    contract_router,
    parameters_of,
    predict,
    query_value,
    top_k_of,
    upload_for,
)
from app.api.contracts.views import split_path, view_named
from app.api.dependencies import check_ready, inference_allowed, parts_of, runtime_of
from app.api.error_responses import request_problem
from app.api.json_images import images_of, parse_object
from app.api.uploads import read_json_or_images
from app.http.contract import Contract, json_errors, text_error
from app.http.problems import TABLE, InvalidInputError, NotReadyError, Row, UnknownVersionError
from models.interface.errors import ImageTooLargeError, UnknownModelError
from models.interface.request import InferenceRequest
from models.interface.results import Prediction

# MLflow's key of a table, and all keys of a list of instances.
_FRAME = "dataframe_split"
_LISTS = ("instances", "inputs", "dataframe_records", _FRAME)
# Keys of an image, in a body without a list or in an instance.
_IMAGES = ("b64", "data", "image", "image_bytes", "body", "input")

# TorchServe's name of an error, by problem or by status.
_TORCHSERVE_TYPES: dict[str | int, str] = {
    TABLE[UnknownModelError].slug: "ModelNotFoundException",
    TABLE[UnknownVersionError].slug: "ModelVersionNotFoundException",
    401: "InvalidKeyException",
    403: "InvalidKeyException",
    404: "ResourceNotFoundException",
    405: "MethodNotAllowedException",
    408: "RequestTimeoutException",
    412: "ConflictStatusException",
    429: "ServiceUnavailableException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
    504: "RequestTimeoutException",
}
_MAX_NAME_CHARACTERS = 100

# One image, a list of images, or {"predictions": …}.
_Form = Literal["one", "list", "predictions"]


@dataclass(frozen=True, slots=True)
class _Sent:
    """The images of a body, the number of classes that it asks for, and the form of its answer in TorchServe."""

    images: Sequence[bytes | ImageTooLargeError]
    top_k: int
    form: _Form


def _torchserve_error(status: int, row: Row, message: str) -> object:
    # Only the probe raises it.
    if row is TABLE[NotReadyError]:
        return {"status": "Unhealthy"}
    kind = _TORCHSERVE_TYPES.get(row.slug) or _TORCHSERVE_TYPES.get(status, "BadRequestException")
    return {"code": status, "type": kind, "message": message}


_torchserve = contract_router(Contract("torchserve", json_errors(_torchserve_error)))
_kserve = contract_router(Contract("kserve_v1", json_errors(text_error)))
_sagemaker = contract_router(Contract("sagemaker", json_errors(text_error)))
routers = (_torchserve, _kserve, _sagemaker)


# PUT is what `curl -T file` sends.
@_torchserve.api_route("/predictions/{name:path}", methods=["POST", "PUT"], tags=[IMAGES])
async def torchserve_predictions(request: Request, name: str) -> object:
    """Answer MODEL or MODEL/VERSION."""
    model, version = split_path(runtime_of(request).cards, name)
    try:
        return await _answer(request, model, version or None)
    except UnknownModelError:
        return _not_found(request, model)


@_torchserve.get("/ping")
async def ping(request: Request) -> object:
    """The health check of TorchServe and of SageMaker."""
    check_ready(request)
    return {"status": "Healthy"}


@_torchserve.get("/models")
async def torchserve_models(request: Request) -> object:
    await inference_allowed(request)
    return {"models": [{"modelName": name, "modelUrl": name} for name in runtime_of(request).cards]}


@_torchserve.get("/models/{name:path}")
async def torchserve_model(request: Request, name: str) -> object:
    """Describe MODEL or MODEL/VERSION."""
    await inference_allowed(request)
    model, version = split_path(runtime_of(request).cards, name)
    try:
        described = await _description(request, model, version)
    except UnknownModelError:
        return _not_found(request, model)
    return [described]


@_kserve.post("/v1/models/{name:path}:predict", tags=[IMAGES])
async def kserve_predict(request: Request, name: str) -> object:
    """Answer MODEL or MODEL/versions/VERSION. The last `:predict` of the path counts."""
    model, version = split_path(runtime_of(request).cards, name)
    return await _answer(request, model, version.removeprefix("versions/") or None, form="predictions")


@_sagemaker.post("/invocations", tags=[IMAGES])
async def invocations(request: Request) -> object:
    """SageMaker passes a query on, and few headers."""
    return await _answer(request, query_value(request, "model"), form="predictions")


async def _answer(request: Request, name: str | None, version: str | None = None, form: _Form | None = None) -> object:
    """Return the predictions of the images in the body. `form` is that of the answer; None leaves it to the body.

    Raises what upload_for, read_json_or_images, images_of and predict raise.
    """
    upload, view = await upload_for(request, name, version)
    sent = await _read(request)
    if view.output == "features":
        _, found = await predict(upload, sent.images, InferenceRequest("features"))
        predictions: list[Any] = [prediction.features.tolist() for prediction in found]
    else:
        _, found = await predict(upload, sent.images, InferenceRequest("classify", top_k=sent.top_k))
        predictions = [_scores(prediction) for prediction in found]
    form = form or sent.form
    if form == "predictions":
        return {"predictions": predictions}
    return predictions[0] if form == "one" else predictions


async def _read(request: Request) -> _Sent:
    received = await read_json_or_images(request)
    if received.json is None:
        return _Sent(received.files, DEFAULT_TOP_K, "one" if len(received.files) == 1 else "list")
    body = await parse_object(request, received.json)
    top_k = top_k_of(parameters_of(body))
    instances, form = _instances(body)
    images = await images_of(request, [_image_in(instance) for instance in instances])
    return _Sent(images, top_k, form)


def _instances(body: dict[str, Any]) -> tuple[list[object], _Form]:
    """Return the instances in a JSON body, and the form of the answer. Raises InvalidInputError."""
    stated = [key for key in _LISTS if key in body]
    # Lists may stand for a column: {"inputs": {"image": ["…", "…"]}}.
    found = _image_in(body[stated[0]] if stated else body)
    if not stated and not isinstance(found, list):
        return [found], "one"
    if stated == ["inputs"] and isinstance(found, str):
        # As Hugging Face's containers on SageMaker take one.
        found = [found]
    if len(stated) > 1 or not isinstance(found, list):
        raise InvalidInputError(f"The body must have one list of images; its key is one of {', '.join(_LISTS)}.")
    if _FRAME in stated:
        # Rows of one column.
        found = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in found]
    return found, "predictions" if stated else "list"


def _image_in(value: object) -> object:
    """Return what stands for the image, or the images, in `value`: what is found along the keys of an image."""
    while isinstance(value, dict):
        keys = [key for key in _IMAGES if key in value] or list(value)
        if len(keys) != 1:
            break
        value = value[keys[0]]
    return value


def _scores(prediction: Prediction) -> dict[str, float]:
    """Return {label: probability}. Of classes with the same label, the likeliest counts."""
    scores: dict[str, float] = {}
    for scored in prediction.classes:
        scores.setdefault(scored.label, scored.probability)
    return scores


async def _description(request: Request, name: str, version: str) -> dict[str, Any]:
    """Return TorchServe's description of a view. Raises UnknownModelError, UnknownVersionError."""
    runtime, parts = runtime_of(request), parts_of(request)
    view = view_named(runtime, name, version or None)
    card = view.model
    # Of each device. HTTP workers know of them what the metrics have.
    numbers: defaultdict[str, list[float]] = defaultdict(list)
    for sample in await parts.scraped.samples_of_models():
        if sample.model == card.name:
            numbers[sample.name].append(sample.value)
    free = sum(numbers["gradless_queue_capacity_images"]) - sum(numbers["gradless_in_flight_images"])
    return {
        "modelName": view.name,
        "modelVersion": f"{card.version}.0",
        "modelUrl": card.name,
        "engine": "Torch",
        "runtime": "python",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": round(max(numbers["gradless_batch_size_limit"], default=1)),
        "maxBatchDelay": round(parts.settings.max_batch_delay_ms),
        "workers": [{"id": "1", "status": "UNLOADING" if card.name in runtime.down else "READY"}],
        "jobQueueStatus": {
            "remainingCapacity": round(max(0, free)),
            "pendingRequests": round(sum(numbers["gradless_queue_depth"])),
        },
    }


def _not_found(request: Request, name: str) -> Response:
    """Return TorchServe's answer for an unknown model, word for word."""
    return request_problem(request, TABLE[UnknownModelError], f"Model not found: {name[:_MAX_NAME_CHARACTERS]}")
