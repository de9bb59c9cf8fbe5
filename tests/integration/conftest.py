"""A real model of the real catalog type, small enough to load in no time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
import torch
from fastapi import FastAPI
from torch import nn

from app.main import create_app
from app.settings import Settings
from models.catalog import Classifier, ModelSpec
from models.serving import Serving, ServingOptions
from models.telemetry import Telemetry, Unheard
from models.transforms import Transform


def tiny_classifier() -> Classifier:
    """Two convolutions with BatchNorm and Dropout, seeded: (N, 3, 32, 32) to 16 features and 10 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(16, 10),
        )
    transform = Transform(36, 32, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Classifier(module, transform, tuple(f"class {index}" for index in range(10)))


@pytest.fixture(scope="session")
def tiny() -> ModelSpec:
    return ModelSpec("tiny", "tiny-convnet", tiny_classifier)


@pytest.fixture
def serving(tiny: ModelSpec) -> Iterator[Serving]:
    runtime = Serving(ServingOptions(models=[tiny]), Unheard())
    yield runtime
    runtime.close(timeout_s=10)


@pytest.fixture
def application(tiny: ModelSpec) -> FastAPI:
    """The whole application over the tiny model, not yet started."""

    def start(telemetry: Telemetry) -> Serving:
        return Serving(ServingOptions(models=[tiny]), telemetry)

    return create_app(Settings(models=("tiny",)), start)


@pytest.fixture
async def client(application: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client of the started application, in process."""
    transport = httpx2.ASGITransport(application, raise_app_exceptions=False)
    async with (
        application.router.lifespan_context(application),
        httpx2.AsyncClient(transport=transport, base_url="http://gradless") as http,
    ):
        yield http
