"""GET /v1/models: what is served, and how."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Depends, Request

from app.dependencies import TheRuntime, card_named, inference_allowed, parts_of
from app.documents import answers
from app.problems import ForbiddenError, UnauthorizedError
from app.schemas import IndexDescription, ModelDescription, ModelList
from models.errors import UnknownModelError
from models.predictions import ModelCard
from models.search.index import SearchIndex

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(inference_allowed)])


@router.get("", responses=answers(UnauthorizedError, ForbiddenError))
async def list_models(request: Request, runtime: TheRuntime) -> ModelList:
    """Every served model, the default first."""
    index = parts_of(request).search_index
    return ModelList(models=[_description(card, index) for card in runtime.cards.values()])


@router.get("/{name}", responses=answers(UnauthorizedError, ForbiddenError, UnknownModelError))
async def describe_model(request: Request, runtime: TheRuntime, name: str) -> ModelDescription:
    """One served model."""
    return _description(card_named(runtime, name), parts_of(request).search_index)


def _description(card: ModelCard, index: SearchIndex | None) -> ModelDescription:
    described = asdict(card)
    # A fact of this process's start, not of the model: it is a metric.
    del described["load_seconds"]
    return ModelDescription(**described, search=_description_of_index(index, card.fingerprint))


def _description_of_index(index: SearchIndex | None, fingerprint: str) -> IndexDescription | None:
    if index is None or index.manifest.fingerprint != fingerprint:
        return None
    about = index.manifest
    return IndexDescription(rows=about.rows, exact=about.exact, recall=about.recall, thumbnails=about.thumbnails)
