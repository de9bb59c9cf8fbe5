"""POST /v1/classify: the most probable classes of images; POST /v1/features: their feature vectors."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from starlette.responses import Response

from app.api.api_route import ImageRoute
from app.api.dependencies import ImageUpload, Upload, accepts
from app.api.error_responses import error_response
from app.api.inference import CLASSIFY, FEATURES, IMAGE_BODY, infer, result_bodies
from app.api.openapi import responses
from app.api.schemas import Classification, Classifications, EncodedFeatures, Features, FeatureVectors, Prediction
from app.api.vectors import unit_vector
from models.interface.errors import ImageError, NoClassesError
from models.interface.request import InferenceRequest
from models.interface.results import Answer
from models.interface.results import Prediction as Predicted

router = APIRouter(tags=["inference"], route_class=ImageRoute)


@router.post(CLASSIFY.path, responses=responses(*CLASSIFY.errors), openapi_extra=IMAGE_BODY)
async def classify(
    upload: ImageUpload, top_k: Annotated[int, Query(ge=1, le=1000, description="maximum classes per image")] = 5
) -> Classifications:
    """Classify one image or several. Among several images, an invalid one gets a problem as its result."""
    if not upload.model.classes:
        raise NoClassesError(upload.model.name)
    answer = await infer(upload, InferenceRequest(CLASSIFY.task, top_k=top_k))
    return Classifications(
        model=answer.model, fingerprint=answer.fingerprint, results=result_bodies(upload, answer, _classification)
    )


def _classification(predicted: Predicted) -> Classification:
    return Classification(
        predictions=[
            Prediction(index=scored.index, label=scored.label, probability=scored.probability)
            for scored in predicted.classes
        ]
    )


NPY = "application/x-npy"

Encoding = Literal["list", "base64"]

_NPY_CONTENT = {"schema": {"type": "string", "format": "binary", "description": "float32, (N, D)"}}


@router.post(
    FEATURES.path,
    response_model=FeatureVectors,
    responses={200: {"content": {NPY: _NPY_CONTENT}}, **responses(*FEATURES.errors)},
    openapi_extra=IMAGE_BODY,
)
async def features(
    upload: ImageUpload,
    normalize: Annotated[bool, Query(description="scale each vector to length 1")] = False,
    encoding: Annotated[
        Encoding, Query(description="format of vectors in JSON: numbers, or base64 of little-endian float32")
    ] = "list",
) -> FeatureVectors | Response:
    """Return the feature vectors of one image or several: the input of the network's head, or the output of the inner
    layer that the model serves. A feature map is flattened to one row; `shape` is its shape.

    With `Accept: application/x-npy` the response is a NumPy file of float32, (N, D). It cannot contain a problem, so
    one invalid image fails the request.
    """
    answer = await infer(upload, InferenceRequest(FEATURES.task))
    if accepts(upload.request, NPY):
        return _npy(upload, answer, normalize=normalize)
    return FeatureVectors(
        model=answer.model,
        fingerprint=answer.fingerprint,
        dimensions=answer.dimensions,
        shape=list(answer.shape),
        results=result_bodies(
            upload, answer, lambda result: _encoded(_scaled(result.features, normalize=normalize), encoding)
        ),
    )


def _npy(upload: Upload, answer: Answer, *, normalize: bool) -> Response:
    vectors = []
    for result in answer.results:
        if isinstance(result, ImageError):
            # Not raised: the traceback would hold this frame, and so the answer that holds the error.
            return error_response(upload.request, upload.metrics, result)
        vectors.append(_scaled(result.features, normalize=normalize))
    file = BytesIO()
    np.save(file, np.stack(vectors), allow_pickle=False)
    shape = ",".join(map(str, answer.shape))
    headers = {
        "X-Gradless-Model": answer.model,
        "X-Gradless-Fingerprint": answer.fingerprint,
        "X-Gradless-Shape": shape,
    }
    return Response(file.getvalue(), headers=headers, media_type=NPY)


def _scaled(vector: NDArray[np.float32], *, normalize: bool) -> NDArray[np.float32]:
    return unit_vector(vector) if normalize else vector


def _encoded(vector: NDArray[np.float32], encoding: Encoding) -> Features | EncodedFeatures:
    if encoding == "base64":
        return EncodedFeatures(features=base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii"))
    return Features(features=vector.tolist())
