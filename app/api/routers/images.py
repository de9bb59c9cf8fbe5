"""POST /v1/classify: the most probable classes of images; /v1/features: their feature vectors; /v1/predict: both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from io import BytesIO
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from starlette.responses import Response

from app.api.api_route import ImageRoute
from app.api.dependencies import ImageUpload, Upload, accepts
from app.api.error_responses import error_response
from app.api.inference import CLASSIFY, FEATURES, IMAGE_BODY, PREDICT, base64_of, infer, result_bodies, scaled
from app.api.openapi import responses
from app.api.schemas import (
    Classification,
    Classifications,
    EncodedFeatures,
    Features,
    FeatureVectors,
    ImageOutputs,
    ModelOutputs,
    Prediction,
)
from models.interface.errors import ImageError, NoClassesError
from models.interface.request import InferenceRequest
from models.interface.results import Answer, ModelCard
from models.interface.results import Prediction as Predicted

router = APIRouter(tags=["inference"], route_class=ImageRoute)

TopK = Annotated[int, Query(ge=1, le=1000, description="maximum classes per image")]


@router.post(CLASSIFY.path, responses=responses(*CLASSIFY.errors), openapi_extra=IMAGE_BODY)
async def classify(upload: ImageUpload, top_k: TopK = 5) -> Classifications:
    """Classify one image or several. Among several images, an invalid one gets a problem as its result."""
    if not upload.model.classes:
        raise NoClassesError(upload.model.name)
    answer = await infer(upload, InferenceRequest(CLASSIFY.task, top_k=top_k))
    return Classifications(
        model=answer.model, fingerprint=answer.fingerprint, results=await result_bodies(upload, answer, _classification)
    )


def _classification(predicted: Predicted) -> Classification:
    return Classification(predictions=_classes(predicted))


def _classes(predicted: Predicted) -> list[Prediction]:
    return [
        Prediction(index=scored.index, label=scored.label, probability=scored.probability)
        for scored in predicted.classes
    ]


NPY = "application/x-npy"

# What a NumPy file has no place for: model, fingerprint, and shape of one image's features.
RESULT_HEADERS = ("X-Gradless-Model", "X-Gradless-Fingerprint", "X-Gradless-Shape")

Encoding = Annotated[
    Literal["list", "base64"],
    Query(description="format of vectors in JSON: numbers, or base64 of little-endian float32"),
]
Normalize = Annotated[bool, Query(description="scale each vector to length 1")]

_NPY_CONTENT = {"schema": {"type": "string", "format": "binary", "description": "float32, (N, D)"}}


@router.post(
    FEATURES.path,
    response_model=FeatureVectors,
    responses={200: {"content": {NPY: _NPY_CONTENT}}, **responses(*FEATURES.errors)},
    openapi_extra=IMAGE_BODY,
)
async def features(
    upload: ImageUpload, normalize: Normalize = False, encoding: Encoding = "list"
) -> FeatureVectors | Response:
    """Return the feature vectors of one image or several: the input of the network's head, or the output of the inner
    layer that the model serves. A feature map is flattened to one row; `shape` is its shape.

    With `Accept: application/x-npy` the response is a NumPy file of float32, (N, D). It cannot contain a problem, so
    one invalid image fails the request.
    """
    answer = await infer(upload, InferenceRequest(FEATURES.task))
    if accepts(upload.request, NPY):
        return _numpy_file(upload, answer, NPY, lambda results: _npy(_stacked(results, normalize=normalize)))
    return FeatureVectors(
        model=answer.model,
        fingerprint=answer.fingerprint,
        dimensions=answer.dimensions,
        shape=list(answer.shape),
        results=await result_bodies(
            upload, answer, lambda result: _features(scaled(result.features, normalize=normalize), encoding)
        ),
    )


def _features(vector: NDArray[np.float32], encoding: str) -> Features | EncodedFeatures:
    if encoding == "base64":
        return EncodedFeatures(features=base64_of(vector))
    return Features(features=vector.tolist())


NPZ = "application/x-npz"

Outputs = Literal["classes", "features", "classes,features", "features,classes"]

_NPZ_CONTENT = {
    "schema": {
        "type": "string",
        "format": "binary",
        "description": "(N, K): `indices` int64, `labels` text, `probabilities` float32; (N, D): `features` float32",
    }
}


@router.post(
    PREDICT.path,
    response_model=ModelOutputs,
    responses={200: {"content": {NPZ: _NPZ_CONTENT}}, **responses(*PREDICT.errors)},
    openapi_extra=IMAGE_BODY,
)
async def predict(
    upload: ImageUpload,
    outputs: Annotated[Outputs | None, Query(description="without it, all outputs that the model has")] = None,
    top_k: TopK = 5,
    normalize: Normalize = False,
    encoding: Encoding = "list",
) -> ModelOutputs | Response:
    """Return classes and feature vectors of one image or several, both from the same forward.

    With `Accept: application/x-npz` the response is a NumPy archive. It cannot contain a problem, so one invalid image
    fails the request.
    """
    wanted = _wanted(upload.model, outputs)
    with_classes = "classes" in wanted
    answer = await infer(
        upload, InferenceRequest(PREDICT.task, top_k=top_k) if with_classes else InferenceRequest(FEATURES.task)
    )
    if accepts(upload.request, NPZ):
        return _numpy_file(upload, answer, NPZ, lambda results: _npz(results, wanted, normalize=normalize))

    def outputs_of(predicted: Predicted) -> ImageOutputs:
        vector: str | list[float] | None = None
        if "features" in wanted:
            numbers = scaled(predicted.features, normalize=normalize)
            vector = base64_of(numbers) if encoding == "base64" else numbers.tolist()
        return ImageOutputs(predictions=_classes(predicted) if with_classes else None, features=vector)

    return ModelOutputs(
        model=answer.model,
        fingerprint=answer.fingerprint,
        dimensions=answer.dimensions,
        shape=list(answer.shape),
        results=await result_bodies(upload, answer, outputs_of),
    )


def _wanted(model: ModelCard, outputs: Outputs | None) -> Collection[str]:
    """Return the requested outputs. Raises NoClassesError."""
    if outputs is None:
        return ("classes", "features") if model.classes else ("features",)
    wanted = outputs.split(",")
    if "classes" in wanted and not model.classes:
        raise NoClassesError(model.name)
    return wanted


def _npz(results: Sequence[Predicted], wanted: Collection[str], *, normalize: bool) -> bytes:
    arrays: dict[str, Any] = {}
    if "classes" in wanted:
        classes = [result.classes for result in results]
        arrays["indices"] = np.array([[scored.index for scored in row] for row in classes], np.int64)
        arrays["labels"] = np.array([[scored.label for scored in row] for row in classes], np.str_)
        arrays["probabilities"] = np.array([[scored.probability for scored in row] for row in classes], np.float32)
    if "features" in wanted:
        arrays["features"] = _stacked(results, normalize=normalize)
    file = BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _npy(array: NDArray[np.float32]) -> bytes:
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _numpy_file(
    upload: Upload, answer: Answer, media_type: str, write: Callable[[Sequence[Predicted]], bytes]
) -> Response:
    """Return the file that `write` makes of all results, or the problem of the first image that failed."""
    results = []
    for result in answer.results:
        if isinstance(result, ImageError):
            # Not raised: the traceback would hold this frame, and so the answer that holds the error.
            return error_response(upload.request, result)
        results.append(result)
    about = (answer.model, answer.fingerprint, ",".join(map(str, answer.shape)))
    headers = dict(zip(RESULT_HEADERS, about, strict=True))
    return Response(write(results), headers=headers, media_type=media_type)


def _stacked(results: Sequence[Predicted], *, normalize: bool) -> NDArray[np.float32]:
    """Return the vectors of `results`, (N, D) float32."""
    return np.stack([scaled(result.features, normalize=normalize) for result in results])
