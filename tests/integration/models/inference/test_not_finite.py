"""If a network overflows on one image, that image fails alone."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from torch import nn

from app.main import create_app
from app.settings import Settings
from models.interface.telemetry import Telemetry
from models.networks.specs import Classifier, ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio


class _OverflowsOnWhite(nn.Module):
    """(N, 3, H, W) to the middle pixel (N, 3), infinite where it is white."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        middle = images[:, :, images.shape[2] // 2, images.shape[3] // 2]
        return torch.where(middle > 0.9999, torch.inf, middle)


@pytest.fixture
def overflowing(tiny: ModelSpec) -> FastAPI:
    def build() -> Classifier:
        classifier = tiny.build()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = nn.Sequential(_OverflowsOnWhite(), nn.Linear(3, 10))
        return Classifier(module, classifier.transform, classifier.labels)

    def start(telemetry: Telemetry) -> LocalRuntime:
        return LocalRuntime(
            ServingOptions(backend="eager", models=[ModelSpec("tiny", "overflowing", build)]), telemetry
        )

    return create_app(Settings(models=("tiny",)), start)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features"])
async def test_an_overflow_fails_one_image_alone(
    overflowing: FastAPI, path: str, image_file: Callable[..., bytes]
) -> None:
    white = image_file(Image.new("RGB", (40, 40), "white"))
    red = image_file(Image.new("RGB", (40, 40), "maroon"))
    transport = httpx2.ASGITransport(overflowing)
    async with (
        overflowing.router.lifespan_context(overflowing),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        files = [("images", ("a.png", content)) for content in (red, white, red)]
        results = (await client.post(path, files=files)).json()["results"]
        alone = await client.post(path, content=white)
    assert ["error" in result for result in results] == [False, True, False]
    assert results[1]["error"]["type"] == "urn:gradless:problem:not-finite"
    assert alone.status_code == 422
