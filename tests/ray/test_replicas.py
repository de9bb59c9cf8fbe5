"""Two replicas behind Ray Serve's proxy behave as one server: results, refusals and metrics."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx2
import psutil
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

# Statuses after which a client may retry.
_RETRYABLE = frozenset({429, 500, 502, 503, 504})


def post(service: Any, path: str, content: bytes = b"", **headers: str) -> httpx2.Response:
    return httpx2.post(f"{service.address}{path}", content=content, headers=service.key | headers, timeout=60)


def families(service: Any) -> dict[str, Metric]:
    scraped = httpx2.get(f"{service.address}/metrics", headers=service.key, timeout=30).raise_for_status()
    return {family.name: family for family in text_string_to_metric_families(scraped.text)}


def answered_by_replica(service: Any) -> dict[str, float]:
    counts: dict[str, float] = {}
    for sample in families(service)["gradless_images"].samples:
        if sample.labels["task"] == "classify" and sample.labels["outcome"] == "ok":
            counts[sample.labels["replica"]] = counts.get(sample.labels["replica"], 0) + sample.value
    return counts


def test_both_replicas_give_the_same_results_and_one_scrape_shows_the_counts_of_each(
    service: Any, clock_jpeg: bytes
) -> None:
    before = answered_by_replica(service)
    answers = []
    while len(answers) < 40:
        answers.append(post(service, "/v1/classify", clock_jpeg).json())

    after = answered_by_replica(service)
    assert {answer["results"][0]["predictions"][0]["label"] for answer in answers} == {"analog clock"}
    assert len({answer["fingerprint"] for answer in answers}) == 1
    assert len(after) == 2
    assert sum(after.values()) - sum(before.values()) == len(answers)
    assert all(after[replica] > before.get(replica, 0) for replica in after)
    # Each family appears once, and each series belongs to one replica.
    assert {sample.labels["replica"] for family in families(service).values() for sample in family.samples} == set(
        after
    )


def test_a_response_has_one_request_id_and_a_server_timing_header(service: Any, clock_jpeg: bytes) -> None:
    answer = post(service, "/v1/features", clock_jpeg, **{"X-Request-ID": "mine"})

    assert answer.headers.get_list("X-Request-ID") == ["mine"]
    assert "forward" in answer.headers["Server-Timing"]


def test_requests_without_a_key_are_refused_also_from_the_machine_of_the_proxy(service: Any, clock_jpeg: bytes) -> None:
    paths = ("/v1/classify", "/debug/grad-modes")
    refused = [httpx2.post(f"{service.address}{path}", content=clock_jpeg, timeout=60) for path in paths]

    assert [answer.status_code for answer in refused] == [401, 401]


def test_a_replica_refuses_to_load_a_model_into_itself_alone(service: Any) -> None:
    refused = post(service, "/v1/models/null")

    assert refused.status_code == 403
    assert "deploy again" in refused.json()["detail"]


def test_a_comparison_streams_its_progress(service: Any) -> None:
    path = "/debug/grad-modes?batch_size=1&iterations=1&arms=inference_mode"
    with httpx2.stream(
        "POST", service.address + path, headers=service.key | {"Accept": "text/event-stream"}, timeout=60
    ) as answer:
        events = [line for line in answer.iter_lines() if line.startswith("event: ")]

    assert "event: progress" in events
    assert events[-1] == "event: report"


def test_unknown_host_names_and_large_bodies_are_refused(service: Any) -> None:
    unknown_host = post(service, "/v1/classify", Host="evil.example")
    too_large = post(service, "/v1/classify", b"0" * 2_000_000)

    assert (unknown_host.status_code, too_large.status_code) == (421, 413)


@pytest.mark.anyio
async def test_replicas_at_capacity_refuse_by_themselves_with_a_retry_after(service: Any, clock_jpeg: bytes) -> None:
    files = [("images", (f"{index}.jpg", clock_jpeg, "image/jpeg")) for index in range(service.queue_capacity)]
    answers: list[httpx2.Response] = []
    async with httpx2.AsyncClient(timeout=120, headers=service.key) as client:
        # Requests that come one after another are all answered. The test's timeout is the deadline.
        while len({answer.status_code for answer in answers}) < 2:
            answers += await asyncio.gather(
                *(client.post(f"{service.address}/v1/classify", files=files) for _ in range(8))
            )

    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all(answer.status_code == 200 for answer in answers if answer not in refused)
    assert {answer.json()["type"] for answer in refused} == {"urn:gradless:problem:overloaded"}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)


@pytest.mark.anyio
async def test_no_request_that_is_retried_is_lost_if_a_replica_is_killed_under_load(
    service: Any, clock_jpeg: bytes
) -> None:
    victim, survivor = service.replicas()
    answered = 0
    killed = asyncio.Event()

    async def send(client: httpx2.AsyncClient) -> None:
        nonlocal answered
        for number in range(12):
            if number == 3:
                killed.set()
            label = await with_retries(client, service.address, clock_jpeg)
            assert label == "analog clock"
            answered += 1

    async def killer() -> None:
        await killed.wait()
        victim.kill()

    async with httpx2.AsyncClient(timeout=120, headers=service.key) as client:
        await asyncio.gather(killer(), *(send(client) for _ in range(6)))

    assert answered == 72
    assert survivor.is_running()
    wait_for_another(service, {victim.pid, survivor.pid})


@pytest.mark.anyio
async def test_a_replica_that_is_removed_answers_the_requests_it_has_accepted(service: Any, clock_jpeg: bytes) -> None:
    gone = asyncio.Event()
    statuses: list[int] = []

    async def send(client: httpx2.AsyncClient) -> None:
        while not gone.is_set():
            answer = await client.post(f"{service.address}/v1/classify", content=clock_jpeg)
            statuses.append(answer.status_code)
            # Leaves time on the cores for the deployment.
            await asyncio.sleep(0.05)

    async def scale_down() -> None:
        await asyncio.to_thread(service.deploy, {"replicas": 1})
        await asyncio.to_thread(wait_for_one, service)
        gone.set()

    async with httpx2.AsyncClient(timeout=120, headers=service.key) as client:
        await asyncio.gather(scale_down(), *(send(client) for _ in range(4)))

    # Without any retry.
    assert set(statuses) == {200}


async def with_retries(client: httpx2.AsyncClient, address: str, image: bytes) -> str:
    """Return the most likely class of `image`; retry failed requests."""
    while True:
        try:
            answer = await client.post(f"{address}/v1/classify?top_k=1", content=image)
        except httpx2.TransportError:
            continue
        if answer.status_code in _RETRYABLE:
            await asyncio.sleep(0.05)
            continue
        label: str = answer.raise_for_status().json()["results"][0]["predictions"][0]["label"]
        return label


def wait_for_one(service: Any) -> None:
    """Wait until one replica is left. The test's timeout is the deadline."""
    while len(service.replicas()) > 1:
        time.sleep(1)


def wait_for_another(service: Any, known: set[int]) -> psutil.Process:
    """Wait for the replica that replaces a killed one to answer, and return it. The test's timeout is the deadline."""
    while True:
        new = [process for process in service.replicas() if process.pid not in known]
        if new and service.ready():
            return new[0]
        time.sleep(1)
