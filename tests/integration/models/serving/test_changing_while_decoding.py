"""An image in the decode pool is answered by the version that accepted it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from gradless.records import ComparisonOptions
from models.interface.errors import ModelGoneError
from models.interface.request import InferenceRequest
from models.interface.telemetry import Telemetry
from models.networks.specs import ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30


@pytest.fixture
def decoding(
    slow_to_decode: ModelSpec, gate: threading.Event, entered: threading.Event
) -> Iterator[tuple[LocalRuntime, threading.Event]]:
    """LocalRuntime whose decodes wait, and what is set when one does."""
    serving = LocalRuntime(ServingOptions(models=[slow_to_decode], backend="eager"), Telemetry())
    gate.clear()
    entered.clear()
    yield serving, entered
    gate.set()
    serving.close(timeout_s=_PATIENCE_S)


async def _replaced(serving: LocalRuntime) -> asyncio.Task[object]:
    """A load under way whose new version has taken over."""
    loading = asyncio.create_task(serving.load("tiny"))
    async with asyncio.timeout(_PATIENCE_S):
        while serving.cards["tiny"].version == 1:  # noqa: ASYNC110 - a thread of its own makes it so
            await asyncio.sleep(0.01)
    return loading  # type: ignore[return-value]


async def test_an_image_in_decode_is_answered_by_the_version_that_accepted_it(
    decoding: tuple[LocalRuntime, threading.Event], gate: threading.Event, clock_png: bytes
) -> None:
    serving, entered = decoding
    pending = asyncio.create_task(serving.predict(None, InferenceRequest("classify", [clock_png], top_k=1)))
    assert await asyncio.to_thread(entered.wait, _PATIENCE_S)
    loading = await _replaced(serving)
    assert not loading.done()
    gate.set()
    assert len((await pending).results) == 1
    await loading


async def test_a_comparison_is_refused_if_its_model_was_replaced_during_the_decode(
    decoding: tuple[LocalRuntime, threading.Event], gate: threading.Event, clock_png: bytes
) -> None:
    serving, entered = decoding
    comparing = asyncio.create_task(serving.compare(None, ComparisonOptions(batch_size=1, iterations=1), clock_png))
    assert await asyncio.to_thread(entered.wait, _PATIENCE_S)
    await (await _replaced(serving))
    gate.set()
    with pytest.raises(ModelGoneError):
        await comparing
