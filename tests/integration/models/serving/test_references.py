"""The memory of a request is freed with its answer, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import io
import tracemalloc
from collections.abc import Iterator

import pytest
from PIL import Image

from models.interface.errors import ImageError
from models.interface.request import InferenceRequest
from models.serving.runtime import LocalRuntime

pytestmark = pytest.mark.anyio

_MIB = 2**20
_REQUESTS = 8


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


def _no_image() -> bytes:
    return b"\xff\xd8\xff" + bytes(4 * _MIB)


def _truncated() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((1600, 1600), 50).save(file, "PNG")
    return file.getvalue()[: 2 * _MIB]


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("bad", [_no_image(), _truncated()], ids=["no image", "truncated"])
async def test_bad_images_are_freed_without_the_garbage_collector(serving: LocalRuntime, bad: bytes) -> None:
    async def refused() -> None:
        # A copy of its own for each request, as from the network.
        answer = await serving.predict(None, InferenceRequest("classify", [bytes(bytearray(bad))], top_k=1))
        assert isinstance(answer.results[0], ImageError)

    await refused()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(_REQUESTS):
        await refused()
    # A decode thread may hold the last file until just after the answer.
    async with asyncio.timeout(60):
        while tracemalloc.get_traced_memory()[0] - before >= len(bad):  # noqa: ASYNC110 - of a decode thread
            await asyncio.sleep(0.01)
