"""A model that stops working fails its requests and is restarted."""

from __future__ import annotations

import asyncio
import ctypes
import queue
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import httpx2
import pytest
import torch
from torch import nn

from models.images.preprocessing import Normalize, Transform
from models.images.samples import draw, encode
from models.inference.engine import drawn_picture
from models.interface.errors import ModelDownError, StartError
from models.interface.request import InferenceRequest
from models.interface.telemetry import Telemetry
from models.networks.specs import Classifier, ModelSpec
from models.serving.runtime import LocalRuntime, ServingOptions

pytestmark = pytest.mark.anyio

_PATIENCE_S = 60
# Far over what a forward takes on a busy machine.
_IMPATIENT_S = 0.8

StartOverHttp = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


class _Hanging(nn.Module):
    """Blocks until `released` is set."""

    def __init__(self, released: threading.Event) -> None:
        super().__init__()
        self.released = released

    def __deepcopy__(self, _memo: object) -> _Hanging:
        # The eager backend serves a copy; an event has none.
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self.released.wait(_PATIENCE_S)
        return images


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    event.set()
    yield event
    event.set()


@pytest.fixture
def built() -> list[str]:
    return []


@pytest.fixture
def hanging(tiny: ModelSpec, released: threading.Event, built: list[str]) -> ModelSpec:
    """The tiny model, whose first instance hangs while `released` is not set."""

    def build() -> Classifier:
        classifier = tiny.build()
        built.append("tiny")
        if len(built) > 1:
            return classifier
        return Classifier(nn.Sequential(_Hanging(released), classifier.module), classifier.transform, classifier.labels)

    return ModelSpec("tiny", "tiny-convnet", build)


def _batcher_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batcher-tiny"]


def _kill_when_it_wakes(thread: threading.Thread) -> None:
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


async def _until_readyz_is(status: int, client: httpx2.AsyncClient) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while (await client.get("/readyz")).status_code != status:  # noqa: ASYNC110 - HTTP has nothing to wait for
            await asyncio.sleep(0.01)


async def test_while_a_forward_hangs_requests_fail_and_the_restarted_model_answers_the_next(
    over_http: StartOverHttp,
    hanging: ModelSpec,
    released: threading.Event,
    clock_jpeg: bytes,
) -> None:
    async with over_http(hanging, forward_timeout_s=_IMPATIENT_S) as client:
        before = await client.post("/v1/classify", content=clock_jpeg)
        released.clear()
        # One in the forward, others behind it.
        requests = [asyncio.create_task(client.post("/v1/classify", content=clock_jpeg)) for _ in range(3)]
        await _until_readyz_is(503, client)
        failed = await asyncio.gather(*requests)
        await _until_readyz_is(200, client)
        after = await client.post("/v1/classify", content=clock_jpeg)
        exposition = (await client.get("/metrics")).text

    assert {answer.status_code for answer in failed} == {503}
    assert {answer.json()["type"] for answer in failed} == {"urn:gradless:problem:model-down"}
    assert len({answer.json()["request_id"] for answer in failed}) == 3
    assert (before.status_code, after.status_code) == (200, 200)
    # Its fingerprint is another: the first instance has one module more.
    assert after.json()["results"] == before.json()["results"]
    assert re.search(r'^gradless_model_replacements_total\{model="tiny"\} 1\.0$', exposition, re.MULTILINE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_model_whose_batch_threads_have_died_is_restarted(
    over_http: StartOverHttp, tiny: ModelSpec, clock_jpeg: bytes
) -> None:
    async with over_http(tiny) as client:
        victims = _batcher_threads()
        for victim in victims:
            _kill_when_it_wakes(victim)
        # They wake for this image, and die instead of taking it.
        failed = await client.post("/v1/classify", content=clock_jpeg)
        for victim in victims:
            await asyncio.to_thread(victim.join, _PATIENCE_S)
        await _until_readyz_is(200, client)
        after = await client.post("/v1/classify", content=clock_jpeg)

    assert failed.status_code == 503
    assert failed.json()["type"] == "urn:gradless:problem:model-down"
    assert after.status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_model_that_has_lost_one_batch_thread_is_restarted(
    over_http: StartOverHttp, tiny: ModelSpec, clock_jpeg: bytes
) -> None:
    async with over_http(tiny) as client:
        before = _batcher_threads()
        _kill_when_it_wakes(before[0])
        # The other thread may answer this image, or the batcher may be abandoned before.
        assert (await client.post("/v1/classify", content=clock_jpeg)).status_code in {200, 503}
        for thread in before:
            await asyncio.to_thread(thread.join, _PATIENCE_S)
        await _until_readyz_is(200, client)
        assert (await client.post("/v1/classify", content=clock_jpeg)).status_code == 200
        assert len(_batcher_threads()) == len(before)


@pytest.mark.parametrize(
    ("fault", "load_timeout_s", "reason"),
    [("gone", 600.0, "its file is gone"), ("hangs", 0.3, "tiny had not loaded after 0.3 s")],
)
async def test_the_service_shuts_down_with_the_reason_if_a_model_cannot_be_restarted(
    hanging: ModelSpec,
    released: threading.Event,
    built: list[str],
    clock_jpeg: bytes,
    fault: str,
    load_timeout_s: float,
    reason: str,
) -> None:
    disk = threading.Event()

    def build() -> Classifier:
        if built and fault == "gone":
            raise StartError("its file is gone")
        if built:
            assert disk.wait(_PATIENCE_S)
        return hanging.build()

    reasons: queue.Queue[str] = queue.Queue()
    spec = ModelSpec("tiny", "tiny-convnet", build)
    options = ServingOptions(
        models=[spec], backend="eager", forward_timeout_s=_IMPATIENT_S, load_timeout_s=load_timeout_s
    )
    serving = LocalRuntime(options, Telemetry(), reasons.put)
    released.clear()
    try:
        with pytest.raises(ModelDownError):
            await serving.predict(None, InferenceRequest("classify", [clock_jpeg], top_k=1))
        found = await asyncio.to_thread(reasons.get, timeout=_PATIENCE_S)
        assert f"cannot be restarted: StartError: {reason}" in found
        assert not serving.ready
        with pytest.raises(ModelDownError):
            await serving.predict(None, InferenceRequest("classify", [clock_jpeg], top_k=1))
    finally:
        disk.set()
        released.set()
        serving.close(timeout_s=10)


class _HangsOnRequests(_Hanging):
    """Loads, and warms up on the picture that is drawn for that; where batches run, it hangs at any other."""

    def __init__(self, released: threading.Event, transform: Transform) -> None:
        super().__init__(released)
        self._drawn = Normalize(transform)(drawn_picture(transform)[None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        serving = threading.current_thread().name.startswith(("batcher", "forward"))
        return super().forward(images) if serving and not torch.allclose(images[:1], self._drawn) else images


async def test_the_last_requests_are_answered_with_an_error_before_the_service_shuts_down(
    tiny: ModelSpec, released: threading.Event
) -> None:
    def build() -> Classifier:
        made = tiny.build()
        hangs = _HangsOnRequests(released, made.transform)
        return Classifier(nn.Sequential(hangs, made.module), made.transform, made.labels)

    picture = encode(draw("crossword"), "JPEG")

    called = threading.Event()
    spec = ModelSpec("tiny", "tiny-convnet", build)
    options = ServingOptions(models=[spec], backend="eager", forward_timeout_s=_IMPATIENT_S, deadline_s=_PATIENCE_S)
    serving = LocalRuntime(options, Telemetry(), lambda _reason: called.set())
    released.clear()
    try:
        for attempt in range(4):
            while not serving.ready:  # noqa: ASYNC110 - a thread of its own makes it so
                await asyncio.sleep(0.01)
            assert not called.is_set(), attempt
            with pytest.raises(ModelDownError):
                await serving.predict(None, InferenceRequest("classify", [picture], top_k=1))
        assert await asyncio.to_thread(called.wait, _PATIENCE_S)
        assert not serving.ready
    finally:
        released.set()
        serving.close(timeout_s=10)
