"""What handlers ask for by type: the settings, the runtime, the images of their request, a checked model name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Query, Request

from app.metrics import Metrics
from app.problems import DebugDisabledError
from app.runtime import Runtime
from app.settings import Settings
from app.uploads import read_images
from models.errors import DrainingError, StartError, UnknownModelError
from models.predictions import ModelCard


@dataclass(slots=True)
class Parts:
    """What an application is made of: the one object on app.state. `runtime` is None until started."""

    settings: Settings
    metrics: Metrics
    runtime: Runtime | None = None
    start_error: StartError | None = None


def parts_of(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


def _settings(request: Request) -> Settings:
    return parts_of(request).settings


def _metrics(request: Request) -> Metrics:
    return parts_of(request).metrics


def _runtime(request: Request) -> Runtime:
    runtime = parts_of(request).runtime
    if runtime is None:
        raise DrainingError
    return runtime


TheSettings = Annotated[Settings, Depends(_settings)]
TheMetrics = Annotated[Metrics, Depends(_metrics)]
TheRuntime = Annotated[Runtime, Depends(_runtime)]


def card_named(runtime: Runtime, name: str | None) -> ModelCard:
    """The card of a served model, the default's for None. Raises UnknownModelError."""
    cards = runtime.cards
    if name is None:
        return next(iter(cards.values()))
    if name not in cards:
        raise UnknownModelError(name, list(cards))
    return cards[name]


def _chosen_model(
    runtime: TheRuntime,
    model: Annotated[str | None, Query(description="a served model's name; the default without it")] = None,
) -> ModelCard:
    return card_named(runtime, model)


# Before the body is read: a caller who asks for a model that is not there need not send it.
ChosenModel = Annotated[ModelCard, Depends(_chosen_model)]


async def _images(request: Request, settings: TheSettings, runtime: TheRuntime, _: ChosenModel) -> list[bytes]:
    if not runtime.ready:
        raise DrainingError
    return await read_images(request, settings)


ImageUploads = Annotated[list[bytes], Depends(_images)]


def debug_enabled(settings: TheSettings) -> None:
    """For routes that exist only where GRADLESS_DEBUG_ENDPOINTS is on. Raises DebugDisabledError."""
    if not settings.debug_endpoints:
        raise DebugDisabledError
