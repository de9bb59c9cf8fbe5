"""Six thousand requests at once, wanted and unwanted: what the server counts is what its callers saw, exactly."""

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
from reliability.wire import Connection, Place, Request, multipart, post

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

# Requests of the fast model come as fast as they are answered; those of the slow one are in the building for long, and
# their callers leave then.
FAST, SLOW = "null", "efficientnet_lite0"

REQUESTS = 6_000
CONNECTIONS = 10
# Of a large request: more than all those connections have in the building together.
IMAGES = 60
CROWDED = 40
WAVES, LEAVING, IMAGES_OF_LEAVING = 5, 50, 12
BROKEN_OFF = 100

SETTINGS = {
    "GRADLESS_MODELS": f"{FAST},{SLOW}",
    # Looked at in a row.
    "GRADLESS_METRICS_MAX_AGE_S": "0",
    "GRADLESS_QUEUE_CAPACITY": "1024",
    "GRADLESS_DEADLINE_S": "5",
    "GRADLESS_MAX_IMAGE_BYTES": "100000",
    "GRADLESS_MAX_IMAGE_PIXELS": "50000000",
}

BAD_STATUSES = {415, 422}
WHOLE_REQUEST = {500: "failed", 503: "refused", 504: "late"}


class Counted(NamedTuple):
    """Requests by status and images by outcome, of a server or of its callers."""

    requests: Counter[int]
    images: Counter[str]


def png(side: tuple[int, int] = (8, 8)) -> bytes:
    file = BytesIO()
    Image.new("L", side, 200).save(file, "PNG")
    return file.getvalue()


GOOD = png()
CUT_OFF = GOOD[:40]
# Many pixels in few bytes: a large request of them takes several times the deadline to decode.
VAST = png((9000, 5000))


def mixed(count: int) -> Iterator[Request]:
    """Every kind of request that has an answer, in turns."""
    kinds = [
        *[post("/v1/classify?top_k=1", GOOD)] * 8,
        *[post("/v1/features?encoding=base64", GOOD)] * 3,
        multipart("/v1/classify?top_k=1", [GOOD, CUT_OFF, GOOD, b"", GOOD]),
        post("/v1/classify", CUT_OFF),
        post("/v1/classify", b""),
        post("/v1/features", b"this is no image"),
        # Refused before their images are read, and so of none.
        post("/v1/classify", bytes(100_001), images=0),
        post("/v1/classify?model=no-such-model", GOOD, images=0),
        post("/v1/classify?top_k=none", GOOD, images=0),
        post("/v1/classify", b"no boundary in it", images=0, content_type="multipart/form-data; boundary=cut"),
    ]
    return (kinds[number % len(kinds)] for number in range(count))


def outcomes(sent: Request, status: int, body: bytes) -> Counter[str]:
    """What became of a request's images, as its caller sees it."""
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
    """Asked for often, so it is not parsed."""
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


class Everybody:
    """All callers of one server, and what they have seen."""

    def __init__(self, address: str, http: httpx2.AsyncClient, whole: Iterator[Request]) -> None:
        self.seen = Counted(Counter(), Counter())
        self.shed_unread = 0
        url = urlsplit(address)
        self._place = Place(url.hostname or "", url.port or 0)
        self._http = http
        self._whole = whole

    async def one_after_another(self) -> None:
        caller = Connection(self._place)
        for sent in self._whole:
            await self._exchange(caller, sent)
        await caller.leave()

    async def too_much_for_the_deadline_then_a_crowd(self) -> None:
        """A request that is in the building until it is late, and more images than there are places for."""
        async with asyncio.TaskGroup() as others:
            others.create_task(self._at_once(1, multipart("/v1/features", [VAST] * IMAGES)))
            while await in_flight(self._http, FAST) < IMAGES:
                pass
            others.create_task(self._at_once(CROWDED, multipart("/v1/classify", [GOOD] * IMAGES)))

    async def leave_with_images_in_the_building(self) -> None:
        sent = multipart(f"/v1/classify?model={SLOW}", [GOOD] * IMAGES_OF_LEAVING)
        for _ in range(WAVES):
            wave = [Connection(self._place) for _ in range(LEAVING)]
            await asyncio.gather(*(caller.send(sent.wire) for caller in wave))
            while await in_flight(self._http, SLOW) < LEAVING * sent.images:
                pass
            for caller in wave:
                await caller.leave()
                self.seen.requests[499] += 1
                self.seen.images["cancelled"] += sent.images
            while await in_flight(self._http, SLOW):
                pass

    async def leave_within_the_body(self) -> None:
        for _ in range(BROKEN_OFF):
            caller = Connection(self._place)
            await caller.send(post("/v1/classify", GOOD).wire[:-5])
            await caller.leave()
            self.seen.requests[499] += 1

    async def _at_once(self, callers: int, sent: Request) -> None:
        crowd = [Connection(self._place) for _ in range(callers)]
        await asyncio.gather(*(self._exchange(caller, sent) for caller in crowd))
        for caller in crowd:
            await caller.leave()

    async def _exchange(self, caller: Connection, sent: Request) -> None:
        status, _, body = await caller.answer_to(sent)
        self.seen.requests[status] += 1
        self.seen.images.update(outcomes(sent, status, body))
        self.shed_unread += status == 429 and not sent.images


async def test_every_image_is_counted_once_by_what_its_caller_saw(tmp_path: Path, warm_command: Any) -> None:
    whole = list(mixed(REQUESTS - 1 - CROWDED - WAVES * LEAVING - BROKEN_OFF))
    # Of bodies that were broken off, as of those refused unread, no image has been sent whole.
    sent = sum(each.images for each in whole) + (1 + CROWDED) * IMAGES + WAVES * LEAVING * IMAGES_OF_LEAVING
    with gradless(tmp_path, SETTINGS, start=warm_command.start) as address:
        async with httpx2.AsyncClient(base_url=address, timeout=60) as http:
            everybody = Everybody(address, http, iter(whole))
            async with asyncio.TaskGroup() as callers:
                for _ in range(CONNECTIONS):
                    callers.create_task(everybody.one_after_another())
                callers.create_task(everybody.too_much_for_the_deadline_then_a_crowd())
                callers.create_task(everybody.leave_with_images_in_the_building())
                callers.create_task(everybody.leave_within_the_body())
            while (server := await counted_by_the_server(http)).requests.total() < REQUESTS:
                pass

    assert everybody.seen.requests.total() == REQUESTS
    assert server == everybody.seen
    assert server.images.total() == sent + everybody.shed_unread
    assert server.images.keys() == {"ok", "bad_image", "refused", "late", "cancelled"}
