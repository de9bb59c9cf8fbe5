"""GET /v1/models: what is served, and how."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Depends

from app.dependencies import TheRuntime, card_named, inference_allowed
from app.documents import answers
from app.problems import ForbiddenError, UnauthorizedError
from app.schemas import ModelDescription, ModelList
from models.errors import UnknownModelError
from models.predictions import ModelCard

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(inference_allowed)])


@router.get("", responses=answers(UnauthorizedError, ForbiddenError))
async def list_models(runtime: TheRuntime) -> ModelList:
    """Every served model, the default first."""
    return ModelList(models=[_description(card) for card in runtime.cards.values()])


# Names may have slashes in them, as timm/resnet18 has.
@router.get("/{name:path}", responses=answers(UnauthorizedError, ForbiddenError, UnknownModelError))
async def describe_model(runtime: TheRuntime, name: str) -> ModelDescription:
    """One served model."""
    return _description(card_named(runtime, name))


def _description(card: ModelCard) -> ModelDescription:
    described = asdict(card)
    # A fact of this process's start, not of the model: it is a metric.
    del described["load_seconds"]
    return ModelDescription(**described)
