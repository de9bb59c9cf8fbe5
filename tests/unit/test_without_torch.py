"""The HTTP side and the parts that need the standard library alone start without torch."""

from __future__ import annotations

import subprocess
import sys

_MODULES = (
    "app.main",
    "app.observability.metrics",
    "models.scheduling.batcher",
    "models.interface.telemetry",
    "models.interface.errors",
    "models.interface.results",
    "gradless.records",
)

_ANSWER_ONE_REQUEST = """
import asyncio
import sys

import httpx2

from app.main import create_app
from app.settings import Settings
from models.interface.results import Answer, ModelCard


PLACE = ("cpu", "float32", "eager")
VERSION = ("0" * 16, False, 0.1, 1, (0,) * 3, (1,) * 3)


class Fake:
    ready = True
    draining = False
    full = False
    cards = {"fake": ModelCard("fake", "a", 1, 4, 8, 2, 2, (2,), None, *PLACE, *VERSION)}

    async def predict(self, model, request):
        return Answer(model or "fake", "0" * 16, 2, (2,), [], 1)

    def admissions(self):
        return {}

    def instances(self):
        return {}

    def devices(self):
        return {}

    def close(self, timeout_s):
        return True


async def main():
    app = create_app(Settings(models=("fake",)), lambda telemetry: Fake())
    transport = httpx2.ASGITransport(app)
    client = httpx2.AsyncClient(transport=transport, base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        assert (await client.post("/v1/classify", content=b"image")).json()["results"] == []
        assert (await client.get("/metrics")).status_code == 200


asyncio.run(main())
"""

_NO_TORCH = "\nimport sys; sys.exit(', '.join({'torch', 'torchvision', 'timm'} & set(sys.modules)) or None)"


def _run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program + _NO_TORCH], capture_output=True, text=True, timeout=100, check=False
    )


def test_importing_the_http_side_and_the_plain_records_leaves_torch_out() -> None:
    ended = _run(f"import {', '.join(_MODULES)}")

    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_application_over_another_runtime_answers_a_request_without_torch() -> None:
    ended = _run(_ANSWER_ONE_REQUEST)

    assert (ended.returncode, ended.stderr) == (0, "")
