"""Requests of every kind that a service gets, wanted and unwanted, over and over: `python -m observe.traffic URL`.

So that every panel has something to show, no panel is left for the day on which something goes wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from urllib.parse import urlsplit

import httpx2
from PIL import Image

from models.images.samples import draw, encode

# For the server: limits within reach of a few requests.
SETTINGS = {
    "GRADLESS_QUEUE_CAPACITY": "64",
    "GRADLESS_MAX_IMAGES_PER_REQUEST": "64",
    "GRADLESS_MAX_IMAGE_BYTES": str(2**20),
    "GRADLESS_DEADLINE_S": "1",
    "GRADLESS_READ_TIMEOUT_S": "1",
}

_CLASSIFY = "/v1/classify"
_FEATURES = "/v1/features"
_SEARCH = "/v1/search"
_LENS = "/debug/grad-modes"


@dataclass(frozen=True, slots=True)
class Pictures:
    """Encoded images, good and bad."""

    clock: bytes
    crossword: bytes
    cut_off: bytes
    vast: bytes
    slow: bytes
    bulky: bytes


def draw_pictures() -> Pictures:
    """The same every time."""
    clock = encode(draw("clock"), "JPEG")
    return Pictures(
        clock=clock,
        crossword=encode(draw("crossword"), "PNG"),
        cut_off=encode(draw("crossword"), "PNG")[:2000],
        vast=_plain(10_000, 10_000),
        slow=_plain(4000, 3000),
        bulky=clock + bytes(2**20),
    )


def _plain(width: int, height: int) -> bytes:
    """Many pixels in few bytes."""
    file = BytesIO()
    Image.new("L", (width, height), 200).save(file, "PNG")
    return file.getvalue()


class Caller:
    """Sends single requests to one server. What comes back is looked at by nobody: Prometheus does."""

    def __init__(self, http: httpx2.AsyncClient, pictures: Pictures) -> None:
        self._http = http
        self._pictures = pictures

    async def one_image(self) -> None:
        await self._post(_CLASSIFY, self._pictures.clock)

    async def several_images(self) -> None:
        pictures = self._pictures
        await self._post_files(_CLASSIFY, [pictures.clock, pictures.crossword, pictures.cut_off, pictures.clock])

    async def features(self) -> None:
        await self._post(f"{_FEATURES}?normalize=true&encoding=base64", self._pictures.crossword)

    async def bad_images(self) -> None:
        for body in (self._pictures.cut_off, b"", b"this is no image", self._pictures.vast):
            await self._post(_CLASSIFY, body)

    async def too_large(self) -> None:
        await self._post(_CLASSIFY, self._pictures.bulky)

    async def wrong_requests(self) -> None:
        await self._post(f"{_CLASSIFY}?model=no-such-model", self._pictures.clock)
        await self._post(f"{_CLASSIFY}?top_k=none", self._pictures.clock)
        for path in (_CLASSIFY, "/no/such/path", "/v1/models/no-such-model"):
            await self._http.get(path)
        # There is no index to search.
        await self._post(_SEARCH, self._pictures.clock)

    async def uninvited(self) -> None:
        """By a name that is not the server's, from another machine as it seems, and in no language that it speaks."""
        await self._http.get("/v1/models", headers={"Host": "elsewhere.example"})
        await self._http.post(_LENS, headers={"X-Forwarded-For": "192.0.2.7"})
        reader, writer = await self._connect()
        writer.write(b"\x16\x03\x01 is how TLS begins\r\n\r\n")
        await reader.read()
        writer.close()

    async def leave(self) -> None:
        """Be gone before the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await self._post_files(_CLASSIFY, [self._pictures.crossword] * 32)

    async def crowd(self) -> None:
        """More images at once than there are places."""
        await asyncio.gather(*(self._post_files(_FEATURES, [self._pictures.clock] * 30) for _ in range(4)))

    async def too_slow_to_decode(self) -> None:
        """More pixels than can be decoded before the deadline."""
        await self._post_files(_CLASSIFY, [self._pictures.slow] * 60)

    async def slow_sender(self) -> None:
        """Half a body, and then nothing: until the server has enough of it."""
        reader, writer = await self._connect()
        writer.write(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf")
        await reader.read()
        writer.close()

    async def lens(self) -> None:
        await self._http.post(f"{_LENS}?batch_size=2&iterations=1")

    async def operators(self) -> None:
        for path in ("/healthz", "/readyz", "/v1/models", "/docs"):
            await self._http.get(path)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        url = urlsplit(str(self._http.base_url))
        return await asyncio.open_connection(url.hostname, url.port)

    async def _post(self, path: str, body: bytes) -> None:
        await self._http.post(path, content=body)

    async def _post_files(self, path: str, images: Sequence[bytes]) -> None:
        await self._http.post(path, files=[("images", (str(place), image)) for place, image in enumerate(images)])


async def send(address: str) -> None:
    """Requests of every kind to the server at `address`, until cancelled."""
    pictures = draw_pictures()
    async with httpx2.AsyncClient(base_url=address, timeout=60) as http, asyncio.TaskGroup() as callers:
        caller = Caller(http, pictures)
        for request, pause_s in (
            (caller.one_image, 0.05),
            (caller.one_image, 0.1),
            (caller.several_images, 0.5),
            (caller.features, 0.2),
            (caller.bad_images, 1),
            (caller.too_large, 2),
            (caller.wrong_requests, 2),
            (caller.uninvited, 2),
            (caller.leave, 2),
            (caller.crowd, 5),
            (caller.too_slow_to_decode, 8),
            (caller.slow_sender, 4),
            (caller.lens, 10),
            (caller.operators, 2),
        ):
            callers.create_task(_repeat(request, pause_s))


async def _repeat(request: Callable[[], Awaitable[None]], pause_s: float) -> None:
    while True:
        # A server that cuts a connection short, restarts or is not there yet is part of the picture.
        with contextlib.suppress(httpx2.HTTPError, OSError):
            await request()
        await asyncio.sleep(pause_s)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(send(sys.argv[1]))
