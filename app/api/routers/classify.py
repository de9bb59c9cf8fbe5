"""POST /v1/classify: return the most probable classes of images."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.dependencies import ClassifiableUpload
from app.api.error_responses import image_problem
from app.api.image_endpoints import CLASSIFY, IMAGE_BODY
from app.api.image_route import ImageRoute
from app.api.inference import infer
from app.api.openapi import responses
from app.api.schemas import Classification, Classifications, Faulty, Prediction
from models.interface.errors import ImageError
from models.interface.request import InferenceRequest
from models.interface.results import Prediction as Predicted

router = APIRouter(tags=["inference"], route_class=ImageRoute)


@router.post(CLASSIFY.path, responses=responses(*CLASSIFY.errors), openapi_extra=IMAGE_BODY)
async def classify(
    upload: ClassifiableUpload,
    top_k: Annotated[int, Query(ge=1, le=1000, description="maximum classes per image")] = 5,
) -> Classifications:
    """Classify one image or several. Among several images, an invalid one gets a problem as its result."""
    answer = await infer(upload, InferenceRequest(CLASSIFY.task, top_k=top_k))
    return Classifications(
        model=answer.model,
        fingerprint=answer.fingerprint,
        results=[
            Faulty(error=image_problem(upload.metrics, result))
            if isinstance(result, ImageError)
            else _classification(result)
            for result in answer.results
        ],
    )


def _classification(predicted: Predicted) -> Classification:
    return Classification(
        predictions=[
            Prediction(index=scored.index, label=scored.label, probability=scored.probability)
            for scored in predicted.classes
        ]
    )
