"""HTTP requests while the device or the decoders are blocked: disconnects, deadlines, overload, drain.

Each image is counted once, whatever its outcome, and its admission is released.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import httpx2
import pytest

from models.hardware import cores
from models.networks.specs import ModelSpec

pytestmark = pytest.mark.anyio

PATIENCE_S = 30

Counted = Callable[[str], Counter[str]]
HandedOver = Callable[[int], Awaitable[None]]
OverHttp = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


async def arrival(entered: threading.Event) -> None:
    assert await asyncio.to_thread(entered.wait, PATIENCE_S)


async def exposition(client: httpx2.AsyncClient) -> str:
    return (await client.get("/metrics")).text


async def gauge(client: httpx2.AsyncClient, name: str) -> float:
    found = re.search(rf"^{name}\{{.*\}} (\S+)$", await exposition(client), re.MULTILINE)
    assert found is not None
    return float(found[1])


async def reaches(client: httpx2.AsyncClient, name: str, value: float) -> None:
    """Wait until the gauge has that value. Each scrape lets other tasks run."""
    async with asyncio.timeout(PATIENCE_S):
        while await gauge(client, name) != value:
            pass


async def cancelled(task: asyncio.Task[httpx2.Response]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def classify(client: httpx2.AsyncClient, *images: bytes) -> asyncio.Task[httpx2.Response]:
    files = [("images", ("image", image)) for image in images]
    return asyncio.create_task(client.post("/v1/classify", files=files))


async def test_a_request_cancelled_in_its_decode_leaves_nothing_behind(
    over_http: OverHttp,
    slow_to_decode: ModelSpec,
    gate: threading.Event,
    entered: threading.Event,
    clock_png: bytes,
    images_total: Counted,
) -> None:
    async with over_http(slow_to_decode, decode_threads=1) as client:
        gate.clear()
        request = classify(client, clock_png, clock_png)
        await arrival(entered)
        assert await gauge(client, "gradless_in_flight_images") == 2
        await cancelled(request)
        assert await gauge(client, "gradless_in_flight_images") == 0
        assert images_total(await exposition(client)) == {"cancelled": 2}
        assert 'gradless_cancelled_total{model="tiny",stage="decode"} 2.0' in await exposition(client)
        gate.set()
        assert (await classify(client, clock_png)).status_code == 200


async def test_a_request_cancelled_in_the_queue_leaves_nothing_behind_and_costs_no_forward(
    over_http: OverHttp,
    gated: ModelSpec,
    gate: threading.Event,
    entered: threading.Event,
    handed_over: HandedOver,
    clock_png: bytes,
    images_total: Counted,
) -> None:
    async with over_http(gated) as client:
        # From here on the duration of a forward is known.
        await classify(client, clock_png)
        gate.clear()
        entered.clear()
        first = classify(client, clock_png)
        await arrival(entered)
        second, third = classify(client, clock_png), classify(client, clock_png)
        await handed_over(4)
        assert await gauge(client, "gradless_queue_depth") == 2
        await cancelled(second)
        assert await gauge(client, "gradless_in_flight_images") == 2
        gate.set()
        assert [(await first).status_code, (await third).status_code] == [200, 200]
        text = await exposition(client)
        assert images_total(text) == {"ok": 3, "cancelled": 1}
        assert 'gradless_cancelled_total{model="tiny",stage="queue"} 1.0' in text
        assert await gauge(client, "gradless_saved_device_seconds_total") > 0
        assert await gauge(client, "gradless_in_flight_images") == 0


async def test_a_request_cancelled_in_its_forward_is_counted_there(
    over_http: OverHttp,
    gated: ModelSpec,
    gate: threading.Event,
    entered: threading.Event,
    handed_over: HandedOver,
    clock_png: bytes,
    images_total: Counted,
) -> None:
    async with over_http(gated) as client:
        gate.clear()
        entered.clear()
        request = classify(client, clock_png)
        await handed_over(1)
        await arrival(entered)
        await cancelled(request)
        text = await exposition(client)
        assert images_total(text) == {"cancelled": 1}
        assert 'gradless_cancelled_total{model="tiny",stage="forward"} 1.0' in text
        assert await gauge(client, "gradless_saved_device_seconds_total") == 0
        gate.set()
        assert (await classify(client, clock_png)).status_code == 200


async def test_a_deadline_passed_is_a_504_and_counted_late(
    over_http: OverHttp, gated: ModelSpec, gate: threading.Event, clock_png: bytes, images_total: Counted
) -> None:
    async with over_http(gated, deadline_s=0.05) as client:
        gate.clear()
        late = await classify(client, clock_png, clock_png)
        assert late.status_code == 504
        assert late.json()["type"] == "urn:gradless:problem:deadline-exceeded"
        assert images_total(await exposition(client)) == {"late": 2}
        assert await gauge(client, "gradless_in_flight_images") == 0
        gate.set()


async def test_at_capacity_requests_get_429_with_retry_after(
    over_http: OverHttp,
    gated: ModelSpec,
    gate: threading.Event,
    entered: threading.Event,
    clock_png: bytes,
    images_total: Counted,
) -> None:
    async with over_http(gated, queue_capacity=2) as client:
        gate.clear()
        entered.clear()
        accepted = classify(client, clock_png, clock_png)
        await arrival(entered)
        refused = await classify(client, clock_png)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        gate.set()
        assert (await accepted).status_code == 200
        assert images_total(await exposition(client)) == {"ok": 2, "refused": 1}


@pytest.mark.skipif(cores.available_cores() == 1, reason="with one core there is one batch thread")
async def test_an_image_does_not_wait_for_others_if_each_has_a_core(
    over_http: OverHttp,
    gated: ModelSpec,
    gate: threading.Event,
    entered: threading.Event,
    clock_png: bytes,
    set_overlap_min_size: Callable[[int | None], None],
) -> None:
    set_overlap_min_size(1)
    async with over_http(gated) as client:
        gate.clear()
        requests = []
        for _ in range(2):
            entered.clear()
            requests.append(classify(client, clock_png))
            await arrival(entered)
        gate.set()
        assert [(await request).status_code for request in requests] == [200, 200]


async def test_requests_accepted_before_a_drain_are_answered(
    over_http: OverHttp, gated: ModelSpec, gate: threading.Event, entered: threading.Event, clock_png: bytes
) -> None:
    async with over_http(gated) as client:
        transport = client._transport  # noqa: SLF001 - the only way to the application
        assert isinstance(transport, httpx2.ASGITransport)
        gate.clear()
        entered.clear()
        in_forward = classify(client, clock_png)
        await arrival(entered)
        in_queue = classify(client, clock_png)
        await reaches(client, "gradless_queue_depth", 1)
        transport.app.state.parts.runtime.drain()  # type: ignore[attr-defined]
        assert (await classify(client, clock_png)).status_code == 503
        gate.set()
        assert [(await in_forward).status_code, (await in_queue).status_code] == [200, 200]


async def test_images_of_a_mixed_run_are_counted_once_each(
    over_http: OverHttp,
    gated: ModelSpec,
    gate: threading.Event,
    entered: threading.Event,
    clock_png: bytes,
    images_total: Counted,
) -> None:
    # The two in the queue are not a full batch, which would have started already.
    async with over_http(gated, queue_capacity=8, max_batch_size=4) as client:
        await classify(client, clock_png, b"rubbish", clock_png)
        gate.clear()
        entered.clear()
        # One image: the second of two might be in the first batch or in the queue.
        running = classify(client, clock_png)
        await arrival(entered)
        leaving = classify(client, clock_png, b"rubbish", clock_png)
        await reaches(client, "gradless_queue_depth", 2)
        refused = await classify(client, *[clock_png] * 5)
        await cancelled(leaving)
        gate.set()
        assert ((await running).status_code, refused.status_code) == (200, 429)
        counted = images_total(await exposition(client))
        assert counted == {"ok": 3, "bad_image": 1, "cancelled": 3, "refused": 5}
        assert counted.total() == 3 + 1 + 3 + 5
        assert await gauge(client, "gradless_in_flight_images") == 0


async def test_a_hanging_forward_is_visible_in_its_age(
    over_http: OverHttp, gated: ModelSpec, gate: threading.Event, entered: threading.Event, clock_png: bytes
) -> None:
    async with over_http(gated, max_batch_size=4, queue_capacity=7) as client:
        assert await gauge(client, "gradless_batch_running_seconds") == 0
        gate.clear()
        entered.clear()
        request = classify(client, clock_png)
        await arrival(entered)
        assert await gauge(client, "gradless_batch_running_seconds") > 0
        assert await gauge(client, "gradless_batch_running_seconds") < PATIENCE_S
        assert await gauge(client, "gradless_batcher_alive") == 1
        assert await gauge(client, "gradless_batch_size_limit") == 4
        assert await gauge(client, "gradless_queue_capacity_images") == 7
        gate.set()
        assert (await request).status_code == 200
        await reaches(client, "gradless_batch_running_seconds", 0)
