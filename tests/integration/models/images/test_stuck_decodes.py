"""A decode that never ends blocks a shared thread: the service ends with the reason, without waiting for it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields

import pytest
import torch

from models.images.decode import Strips
from models.images.preprocessing import Transform
from models.interface.errors import DeadlineExceededError
from models.interface.request import InferenceRequest
from models.interface.telemetry import Telemetry
from models.networks.specs import Classifier, ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

_PATIENCE_S = 60

Stuck = Callable[..., LocalRuntime]


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def serve(tiny: ModelSpec, released: threading.Event) -> Stuck:
    """The tiny model with a transform that does not end before `released` is set."""

    class Stuck(Transform):
        def shape_strips(self, picture: Strips) -> torch.Tensor:
            assert released.wait(_PATIENCE_S)
            return super().shape_strips(picture)

    def build() -> Classifier:
        made = tiny.build()
        values = {field.name: getattr(made.transform, field.name) for field in fields(Transform)}
        return Classifier(made.module, Stuck(**values), made.labels)

    def start(shut_down: Callable[[str], None], deadline_s: float = 0.2) -> LocalRuntime:
        spec = ModelSpec("tiny", "tiny-convnet", build)
        options = ServingOptions(models=[spec], backend="eager", forward_timeout_s=0.5, deadline_s=deadline_s)
        return LocalRuntime(options, Telemetry(), shut_down)

    return start


async def test_a_decode_that_hangs_ends_the_service_with_its_reason(
    serve: Stuck, released: threading.Event, clock_jpeg: bytes
) -> None:
    reasons: queue.Queue[str] = queue.Queue()
    serving = serve(reasons.put)
    try:
        assert serving.ready
        with pytest.raises(DeadlineExceededError):
            await serving.predict(None, InferenceRequest("classify", [clock_jpeg], top_k=1))
        reason = await asyncio.to_thread(reasons.get, timeout=_PATIENCE_S)
        assert reason.startswith("an image has been decoded for")
        assert not serving.ready
    finally:
        released.set()
        assert serving.close(timeout_s=_PATIENCE_S)


async def test_a_hung_decode_is_detected_even_after_its_model_was_unloaded(
    serve: Stuck, released: threading.Event, clock_jpeg: bytes
) -> None:
    reasons: queue.Queue[str] = queue.Queue()
    serving = serve(reasons.put)
    try:
        await serving.load("other", "null")
        with pytest.raises(DeadlineExceededError):
            await serving.predict("tiny", InferenceRequest("classify", [clock_jpeg], top_k=1))
        await serving.unload("tiny")
        reason = await asyncio.to_thread(reasons.get, timeout=_PATIENCE_S)
        assert reason.startswith("an image has been decoded for")
    finally:
        released.set()
        assert serving.close(timeout_s=_PATIENCE_S)


async def test_a_decode_that_hangs_does_not_keep_the_service_from_closing(
    serve: Stuck, released: threading.Event, clock_jpeg: bytes
) -> None:
    serving = serve(lambda _reason: None)
    with pytest.raises(DeadlineExceededError):
        await serving.predict(None, InferenceRequest("classify", [clock_jpeg], top_k=1))
    assert not await asyncio.to_thread(serving.close, 0.1)
    released.set()
    assert await asyncio.to_thread(serving.close, _PATIENCE_S)


async def test_a_decode_that_ends_does_not_affect_the_service(
    serve: Stuck, released: threading.Event, clock_jpeg: bytes
) -> None:
    released.set()
    serving = serve(lambda _reason: None, _PATIENCE_S)
    try:
        assert (await serving.predict(None, InferenceRequest("classify", [clock_jpeg], top_k=1))).results
        assert serving.ready
    finally:
        assert serving.close(timeout_s=_PATIENCE_S)
