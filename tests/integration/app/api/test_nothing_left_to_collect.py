"""Requests leave no reference cycles: a cycle keeps the request and its images until the garbage collector runs, which
stops all threads."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx2
import pytest

from models.networks.specs import ModelSpec

if TYPE_CHECKING:
    from tests.integration.conftest import StartOverHttp

pytestmark = pytest.mark.anyio

_REQUESTS = 20

Send = Callable[[httpx2.AsyncClient, bytes], Awaitable[httpx2.Response]]


@contextmanager
def collected() -> Iterator[Counter[str]]:
    """Collect the garbage that a block leaves: counts by type, of our types and those of requests."""
    found: Counter[str] = Counter()
    gc.collect()
    # Existing objects would take most of the time of a collection.
    gc.freeze()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        for each in gc.garbage:
            kind = type(each)
            if kind.__module__.partition(".")[0] in {"app", "models", "starlette", "fastapi"}:
                found[f"{kind.__module__}.{kind.__qualname__}"] += 1
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.unfreeze()


async def _classify(http: httpx2.AsyncClient, image: bytes) -> httpx2.Response:
    return await http.post("/v1/classify", content=image)


async def _features(http: httpx2.AsyncClient, image: bytes) -> httpx2.Response:
    return await http.post("/v1/features", content=image)


async def _features_npy(http: httpx2.AsyncClient, image: bytes) -> httpx2.Response:
    return await http.post("/v1/features", content=image, headers={"accept": "application/x-npy"})


async def _classify_several(http: httpx2.AsyncClient, image: bytes) -> httpx2.Response:
    return await http.post("/v1/classify", files=[("images", (str(number), image)) for number in range(3)])


async def _features_npy_several(http: httpx2.AsyncClient, image: bytes) -> httpx2.Response:
    files = [("images", (str(number), image)) for number in range(3)]
    return await http.post("/v1/features", files=files, headers={"accept": "application/x-npy"})


@pytest.mark.parametrize("send", [_classify, _features, _features_npy, _classify_several, _features_npy_several])
@pytest.mark.parametrize("kind", ["good", "broken", "of no format", "empty"])
async def test_answered_requests_leave_no_reference_cycles(
    over_http: StartOverHttp, tiny: ModelSpec, clock_jpeg: bytes, send: Send, kind: str
) -> None:
    image = {"good": clock_jpeg, "broken": clock_jpeg[:400], "of no format": b"no image", "empty": b""}[kind]
    async with over_http(tiny) as http:
        await send(http, image)
        with collected() as found:
            answers = [await send(http, image) for _ in range(_REQUESTS)]
            if kind == "good":
                assert {answer.status_code for answer in answers} == {200}
            answers.clear()
    assert not found


async def _held(
    http: httpx2.AsyncClient, gate: threading.Event, entered: threading.Event, image: bytes
) -> asyncio.Task[httpx2.Response]:
    """Start a request and wait until its forward has begun. The forward ends when the gate opens."""
    gate.clear()
    entered.clear()
    request = asyncio.create_task(_classify(http, image))
    assert await asyncio.to_thread(entered.wait, 30)
    return request


async def test_refused_requests_leave_no_reference_cycles(
    over_http: StartOverHttp, gated: ModelSpec, gate: threading.Event, entered: threading.Event, clock_jpeg: bytes
) -> None:
    async with over_http(gated, queue_capacity=1) as http:
        waiting = await _held(http, gate, entered, clock_jpeg)
        with collected() as found:
            statuses = {(await _classify(http, clock_jpeg)).status_code for _ in range(_REQUESTS)}
        gate.set()
        assert (await waiting).status_code == 200
    assert statuses == {429}
    assert not found


async def test_requests_after_their_deadline_leave_no_reference_cycles(
    over_http: StartOverHttp, gated: ModelSpec, gate: threading.Event, clock_jpeg: bytes
) -> None:
    async with over_http(gated, deadline_s=0.2) as http:
        gate.clear()
        assert (await _classify(http, clock_jpeg)).status_code == 504
        with collected() as found:
            answers = await asyncio.gather(*(_classify(http, clock_jpeg) for _ in range(_REQUESTS)))
            assert {answer.status_code for answer in answers} == {504}
            answers.clear()
        gate.set()
    assert not found
