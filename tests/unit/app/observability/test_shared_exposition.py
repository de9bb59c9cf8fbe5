"""Scrapers of one second share one exposition of a format, however many they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx2
import pytest

from app.observability.metrics import SharedExposition
from models.interface.shared_work import SharedWork

pytestmark = pytest.mark.anyio

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


class Builds:
    """Stands in for Metrics.exposition: each is another, and may be made to wait."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def build(self, accept: str) -> tuple[bytes, str]:
        self.asked.append(accept)
        number = len(self.asked)
        self.begun.set()
        assert self.gate.wait(30)
        return b"%d" % number, "whatever"


@pytest.fixture
def builds() -> Builds:
    return Builds()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that shared work sees: its one element."""
    now = [100.0]
    monkeypatch.setattr("models.interface.shared_work.perf_counter", lambda: now[0])
    return now


async def test_one_is_built_a_second_and_for_each_format(builds: Builds, clock: list[float]) -> None:
    shared = SharedExposition(builds.build, 1.0)
    bodies = []
    for seconds in (0.0, 0.5, 0.4, 0.2, 0.9):
        clock[0] += seconds
        bodies.append((await shared.exposition("text/plain"))[0])
    fancy = [await shared.exposition(OPENMETRICS) for _ in range(2)]

    assert bodies == [b"1", b"1", b"1", b"2", b"2"]
    assert {body for body, _ in fancy} == {b"3"}
    assert fancy[0][1].startswith(OPENMETRICS)


async def test_all_who_ask_while_one_is_built_get_that_one(builds: Builds, clock: list[float]) -> None:
    shared = SharedExposition(builds.build, 1.0)
    builds.gate.clear()
    first = asyncio.ensure_future(shared.exposition(""))
    assert await asyncio.to_thread(builds.begun.wait, 30)
    clock[0] += 5
    others = [asyncio.ensure_future(shared.exposition("")) for _ in range(50)]
    await asyncio.sleep(0)
    builds.gate.set()

    assert {body for body, _ in await asyncio.gather(first, *others)} == {b"1"}
    assert len(builds.asked) == 1


async def test_versions_that_a_scraper_makes_up_are_no_formats_of_their_own(builds: Builds, clock: list[float]) -> None:
    del clock
    shared = SharedExposition(builds.build, 1.0)
    accepted = [f"application/openmetrics-text; version=1.0.{number}" for number in range(20)]
    assert {(await shared.exposition(accept))[0] for accept in accepted} == {b"1"}


async def test_a_scraper_that_leaves_takes_nothing_from_the_others(builds: Builds, clock: list[float]) -> None:
    del clock
    shared = SharedExposition(builds.build, 1.0)
    builds.gate.clear()
    leaving, staying = (asyncio.ensure_future(shared.exposition("")) for _ in range(2))
    assert await asyncio.to_thread(builds.begun.wait, 30)
    leaving.cancel()
    builds.gate.set()
    assert (await staying)[0] == b"1"


async def test_one_that_failed_is_tried_again_by_the_next(clock: list[float]) -> None:
    del clock
    work: SharedWork[str, int] = SharedWork()

    async def fail() -> int:
        raise LookupError

    async def succeed() -> int:
        return 1

    with pytest.raises(LookupError):
        await work.result("a", fail, max_age_s=1)
    assert await work.result("a", succeed, max_age_s=1) == 1
    assert await work.result("a", fail, max_age_s=1) == 1


async def test_a_service_shows_what_was_so_a_second_ago_at_the_most(serve: Serve, clock: list[float]) -> None:
    def seen(exposition: str) -> bool:
        return 'gradless_requests_total{code="200",method="POST",route="/v1/classify"} 1.0' in exposition

    async with serve({}, metrics_max_age_s=1) as client:
        await client.get("/metrics")
        await client.post("/v1/classify", content=b"image")
        again = (await client.get("/metrics")).text
        clock[0] += 1.0
        later = (await client.get("/metrics")).text
    assert [seen(again), seen(later)] == [False, True]
