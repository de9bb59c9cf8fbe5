"""Fifteen hundred concurrent requests, valid and invalid: the server's counters equal the clients'."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from observe.processes import gradless
from reliability.wire import Address, Connection, Request, multipart, post

pytestmark = pytest.mark.anyio

# Requests of the fast model are answered at once. Those of the slow one stay in flight for long, and their clients
# disconnect meanwhile.
FAST, SLOW = "null", "efficientnet_lite0"

REQUESTS = 1_500
CONNECTIONS = 10
# Images of a large request: more than all those connections have in flight together.
IMAGES = 60
OVERLOAD = 40
WAVES, DISCONNECTING, IMAGES_OF_DISCONNECTING = 3, 25, 12
TRUNCATED = 100

SETTINGS = {
    "GRADLESS_MODELS": f"{FAST},{SLOW}",
    # A new exposition for each scrape.
    "GRADLESS_METRICS_MAX_AGE_S": "0",
    "GRADLESS_QUEUE_CAPACITY": "1024",
    "GRADLESS_DEADLINE_S": "5",
    "GRADLESS_MAX_IMAGE_BYTES": "100000",
    "GRADLESS_MAX_IMAGE_PIXELS": "50000000",
}

BAD_STATUSES = {415, 422}
WHOLE_REQUEST = {500: "failed", 503: "refused", 504: "late"}


class Counted(NamedTuple):
    """Requests by status and images by outcome, according to the server or the clients."""

    requests: Counter[int]
    images: Counter[str]


def png(side: tuple[int, int] = (8, 8)) -> bytes:
    file = BytesIO()
    Image.new("L", side, 200).save(file, "PNG")
    return file.getvalue()


GOOD = png()
TRUNCATED_PNG = GOOD[:40]
# Many pixels in few bytes: a large request of them takes several times the deadline to decode.
VAST = png((9000, 5000))


def mixed(count: int) -> Iterator[Request]:
    """Yield requests of every kind that gets a response, in rotation."""
    kinds = [
        *[post("/v1/classify?top_k=1", GOOD)] * 8,
        *[post("/v1/features?encoding=base64", GOOD)] * 3,
        multipart("/v1/classify?top_k=1", [GOOD, TRUNCATED_PNG, GOOD, b"", GOOD]),
        post("/v1/classify", TRUNCATED_PNG),
        post("/v1/classify", b""),
        post("/v1/features", b"not an image"),
        # Refused before any image is read, so without images.
        post("/v1/classify", bytes(100_001), images=0),
        post("/v1/classify?model=no-such-model", GOOD, images=0),
        post("/v1/classify?top_k=none", GOOD, images=0),
        post("/v1/classify", b"no boundary in it", images=0, content_type="multipart/form-data; boundary=cut"),
    ]
    return (kinds[number % len(kinds)] for number in range(count))


def outcomes(sent: Request, status: int, body: bytes) -> Counter[str]:
    """Return the outcomes of a request's images according to its client."""
    if status == 429:
        # Load shedding answers from the head alone, before it is known that the body would have been refused.
        return Counter({"refused": sent.images or 1})
    if not sent.images:
        return Counter()
    if status in WHOLE_REQUEST:
        return Counter({WHOLE_REQUEST[status]: sent.images})
    if status in BAD_STATUSES:
        assert sent.images == 1
        return Counter({"bad_image": 1})
    assert status == 200, body
    return Counter("bad_image" if "error" in result else "ok" for result in json.loads(body)["results"])


async def in_flight(http: httpx2.AsyncClient, model: str) -> float:
    """Return the images in flight. Found by a regular expression: it is read often."""
    await asyncio.sleep(0.02)
    found = re.search(
        rf'^gradless_in_flight_images\{{model="{model}"\}} (\S+)$', (await http.get("/metrics")).text, re.MULTILINE
    )
    assert found
    return float(found[1])


async def counted_by_the_server(http: httpx2.AsyncClient) -> Counted:
    counted = Counted(Counter(), Counter())
    samples = [
        sample
        for family in text_string_to_metric_families((await http.get("/metrics")).text)
        for sample in family.samples
    ]
    for sample in samples:
        if sample.name == "gradless_requests_total" and sample.labels["route"] in {"/v1/classify", "/v1/features"}:
            counted.requests[int(sample.labels["code"])] += int(sample.value)
        if sample.name == "gradless_images_total":
            counted.images[sample.labels["outcome"]] += int(sample.value)
    return Counted(+counted.requests, +counted.images)


class Clients:
    """All clients of one server and the results of their requests."""

    def __init__(self, address: str, http: httpx2.AsyncClient, whole: Iterator[Request]) -> None:
        self.counted = Counted(Counter(), Counter())
        self.shed_unread = 0
        self._truncated_counted = asyncio.Event()
        url = urlsplit(address)
        self._place = Address(url.hostname or "", url.port or 0)
        self._http = http
        self._whole = whole

    async def send_one_after_another(self) -> None:
        client = Connection(self._place)
        for sent in self._whole:
            await self._exchange(client, sent)
        await client.close()

    async def exceed_the_deadline_and_the_capacity(self) -> None:
        """Send a request that misses its deadline and, while it is in flight, more images than the capacity.

        Not while truncated requests arrive: an overloaded server refuses them at their headers, which their clients do
        not see.
        """
        await self._truncated_counted.wait()
        async with asyncio.TaskGroup() as requests:
            requests.create_task(self._at_once(1, multipart("/v1/features", [VAST] * IMAGES)))
            while await in_flight(self._http, FAST) < IMAGES:
                pass
            requests.create_task(self._at_once(OVERLOAD, multipart("/v1/classify", [GOOD] * IMAGES)))

    async def disconnect_with_images_in_flight(self) -> None:
        await self._truncated_counted.wait()
        sent = multipart(f"/v1/classify?model={SLOW}", [GOOD] * IMAGES_OF_DISCONNECTING)
        for _ in range(WAVES):
            wave = [Connection(self._place) for _ in range(DISCONNECTING)]
            await asyncio.gather(*(client.send(sent.wire) for client in wave))
            while await in_flight(self._http, SLOW) < DISCONNECTING * sent.images:
                pass
            for client in wave:
                await client.close()
                self.counted.requests[499] += 1
                self.counted.images["cancelled"] += sent.images
            while await in_flight(self._http, SLOW):
                pass

    async def disconnect_within_the_body(self) -> None:
        for _ in range(TRUNCATED):
            client = Connection(self._place)
            await client.send(post("/v1/classify", GOOD).wire[:-5])
            await client.close()
            self.counted.requests[499] += 1
        while (await counted_by_the_server(self._http)).requests[499] < TRUNCATED:
            pass
        self._truncated_counted.set()

    async def _at_once(self, count: int, sent: Request) -> None:
        connections = [Connection(self._place) for _ in range(count)]
        await asyncio.gather(*(self._exchange(client, sent) for client in connections))
        for client in connections:
            await client.close()

    async def _exchange(self, client: Connection, sent: Request) -> None:
        status, _, body = await client.answer_to(sent)
        self.counted.requests[status] += 1
        self.counted.images.update(outcomes(sent, status, body))
        self.shed_unread += status == 429 and not sent.images


async def test_every_image_is_counted_once_with_the_outcome_its_client_saw(tmp_path: Path, warm_command: Any) -> None:
    whole = list(mixed(REQUESTS - 1 - OVERLOAD - WAVES * DISCONNECTING - TRUNCATED))
    # Truncated bodies and bodies refused unread contain no complete image.
    sent = (
        sum(each.images for each in whole) + (1 + OVERLOAD) * IMAGES + WAVES * DISCONNECTING * IMAGES_OF_DISCONNECTING
    )
    with gradless(tmp_path, SETTINGS, start=warm_command.start) as address:
        async with httpx2.AsyncClient(base_url=address, timeout=60) as http:
            clients = Clients(address, http, iter(whole))
            async with asyncio.TaskGroup() as tasks:
                for _ in range(CONNECTIONS):
                    tasks.create_task(clients.send_one_after_another())
                tasks.create_task(clients.exceed_the_deadline_and_the_capacity())
                tasks.create_task(clients.disconnect_with_images_in_flight())
                tasks.create_task(clients.disconnect_within_the_body())
            while (server := await counted_by_the_server(http)).requests.total() < REQUESTS:
                pass

    assert clients.counted.requests.total() == REQUESTS
    assert server == clients.counted
    assert server.images.total() == sent + clients.shed_unread
    assert server.images.keys() == {"ok", "bad_image", "refused", "late", "cancelled"}
