"""app/observability/metrics/exposition.py: all scrapers within a second get the same exposition, and the expositions of
several replicas are merged to one with complete families."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx2
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from app.observability.metrics import Metrics, SharedExposition, merge_expositions
from models.interface.shared_work import SharedWork

pytestmark = pytest.mark.anyio

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


class Builds:
    """Replaces Metrics.exposition: each call has another result, and `gate` can block it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.started = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def build(self, accept: str) -> tuple[bytes, str]:
        self.calls.append(accept)
        number = len(self.calls)
        self.started.set()
        assert self.gate.wait(30)
        return b"%d" % number, "whatever"


@pytest.fixture
def builds() -> Builds:
    return Builds()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of SharedWork: the single element of the list."""
    now = [100.0]
    monkeypatch.setattr("models.interface.shared_work.perf_counter", lambda: now[0])
    return now


async def test_one_exposition_per_second_and_format_is_built(builds: Builds, clock: list[float]) -> None:
    shared = SharedExposition(builds.build, 1.0)
    bodies = []
    for seconds in (0.0, 0.5, 0.4, 0.2, 0.9):
        clock[0] += seconds
        bodies.append((await shared.exposition("text/plain"))[0])
    openmetrics = [await shared.exposition(OPENMETRICS) for _ in range(2)]

    assert bodies == [b"1", b"1", b"1", b"2", b"2"]
    assert {body for body, _ in openmetrics} == {b"3"}
    assert openmetrics[0][1].startswith(OPENMETRICS)


async def test_scrapers_that_arrive_during_a_build_share_its_result(builds: Builds, clock: list[float]) -> None:
    shared = SharedExposition(builds.build, 1.0)
    builds.gate.clear()
    first = asyncio.ensure_future(shared.exposition(""))
    assert await asyncio.to_thread(builds.started.wait, 30)
    clock[0] += 5
    others = [asyncio.ensure_future(shared.exposition("")) for _ in range(50)]
    await asyncio.sleep(0)
    builds.gate.set()

    assert {body for body, _ in await asyncio.gather(first, *others)} == {b"1"}
    assert len(builds.calls) == 1


async def test_unknown_versions_of_a_format_share_its_exposition(builds: Builds, clock: list[float]) -> None:
    del clock
    shared = SharedExposition(builds.build, 1.0)
    accepted = [f"application/openmetrics-text; version=1.0.{number}" for number in range(20)]
    assert {(await shared.exposition(accept))[0] for accept in accepted} == {b"1"}


async def test_a_scraper_that_disconnects_does_not_affect_the_others(builds: Builds, clock: list[float]) -> None:
    del clock
    shared = SharedExposition(builds.build, 1.0)
    builds.gate.clear()
    cancelled, waiting = (asyncio.ensure_future(shared.exposition("")) for _ in range(2))
    assert await asyncio.to_thread(builds.started.wait, 30)
    cancelled.cancel()
    builds.gate.set()
    assert (await waiting)[0] == b"1"


async def test_samples_of_models_are_built_anew_and_have_no_buckets(clock: list[float]) -> None:
    del clock
    metrics = Metrics()
    metrics.model_served("a", ("cpu",))
    shared = SharedExposition(metrics.exposition, 60)
    await shared.exposition("text/plain")
    metrics.model_request_done("a", "ok", 0.5)
    metrics.request_done("/v1/classify", "POST", 200, 0.5, None)
    samples = {(each.name, each.labels.get("outcome")): each for each in await shared.samples_of_models()}

    found = samples["gradless_model_request_seconds_total", "ok"]
    assert (found.model, found.value) == ("a", 0.5)
    assert ("gradless_stage_duration_seconds_count", None) in samples
    assert not any("_bucket" in name or name.startswith("gradless_request_") for name, _ in samples)

    # An HTTP worker asks the engine process, which may keep an exposition too.
    shared.build_anew = lambda accept: (f'queue{{model="{accept}"}} 7\n'.encode(), accept)
    assert [tuple(each) for each in await shared.samples_of_models()] == [
        ("queue", "text/plain", {"model": "text/plain"}, 7.0)
    ]


async def test_a_failed_build_is_repeated_for_the_next_scraper(clock: list[float]) -> None:
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


async def test_metrics_of_a_server_are_at_most_a_second_old(serve: Serve, clock: list[float]) -> None:
    def counted(exposition: str) -> bool:
        return (
            'gradless_requests_total{code="200",contract="native",method="POST",route="/v1/classify"} 1.0' in exposition
        )

    async with serve({}, metrics_max_age_s=1) as client:
        await client.get("/metrics")
        await client.post("/v1/classify", content=b"image")
        again = (await client.get("/metrics")).text
        clock[0] += 1.0
        later = (await client.get("/metrics")).text
    assert [counted(again), counted(later)] == [False, True]


def exposition(requests: int, accept: str = "") -> str:
    metrics = Metrics()
    metrics.model_served('a "model"\\', ["cpu"])
    for number in range(requests):
        metrics.request_done("/v1/classify", "POST", 200, 0.01, f"id{number}")
    return metrics.exposition(accept)[0].decode()


def merged(expositions: dict[str, str], accept: str = "") -> str:
    return merge_expositions(expositions, accept, label="replica")[0].decode()


def test_each_series_keeps_its_value_and_names_its_replica() -> None:
    families = prometheus_families(merged({"one": exposition(3), "two": exposition(5)}))

    samples = [sample for family in families for sample in family.samples]
    counted = {sample.labels["replica"]: sample.value for sample in samples if sample.name == "gradless_requests_total"}
    assert counted == {"one": 3, "two": 5}
    assert {sample.labels["replica"] for sample in samples} == {"one", "two"}


def test_a_merged_exposition_of_one_replica_differs_from_its_own_by_the_label_alone() -> None:
    alone = exposition(2)
    unlabelled = merged({"one": alone})
    for label in ('{replica="one"}', ',replica="one"', 'replica="one",'):
        unlabelled = unlabelled.replace(label, "")

    assert unlabelled == alone


def test_a_merged_exposition_describes_each_family_once() -> None:
    alone = exposition(1)
    together = merged({"one": alone, "two": exposition(2)})

    descriptions = [line for line in together.splitlines() if line.startswith("#")]
    assert descriptions == [line for line in alone.splitlines() if line.startswith("#")]
    # The parser splits a family whose series are not consecutive.
    names = [family.name for family in prometheus_families(together)]
    assert len(names) == len(set(names))


def test_a_merged_openmetrics_exposition_keeps_exemplars_and_ends_once() -> None:
    together = merged({name: exposition(1, OPENMETRICS) for name in ("one", "two")}, OPENMETRICS)

    exemplars = [
        sample.exemplar.labels["request_id"]
        for family in openmetrics_families(together)
        for sample in family.samples
        if sample.exemplar
    ]
    assert exemplars == ["id0", "id0"]
    assert together.count("# EOF") == 1
