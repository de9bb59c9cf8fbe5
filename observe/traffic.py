"""`python -m observe.traffic URL`: send valid and invalid requests of every kind until stopped.

They give every panel data, so that a broken panel is noticed before an incident.
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

# Settings of the server: limits that a few requests reach.
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
class Images:
    """Encoded images, valid and invalid."""

    clock: bytes
    crossword: bytes
    cut_off: bytes
    vast: bytes
    slow: bytes
    bulky: bytes


def draw_images() -> Images:
    """Return the same images each time."""
    clock = encode(draw("clock"), "JPEG")
    return Images(
        clock=clock,
        crossword=encode(draw("crossword"), "PNG"),
        cut_off=encode(draw("crossword"), "PNG")[:2000],
        vast=_plain(10_000, 10_000),
        slow=_plain(4000, 3000),
        bulky=clock + bytes(2**20),
    )


def _plain(width: int, height: int) -> bytes:
    """Encode an image with many pixels in few bytes."""
    file = BytesIO()
    Image.new("L", (width, height), 200).save(file, "PNG")
    return file.getvalue()


class Client:
    """Sends single requests to one server and ignores the responses: Prometheus shows them."""

    def __init__(self, http: httpx2.AsyncClient, images: Images) -> None:
        self._http = http
        self._images = images

    async def one_image(self) -> None:
        await self._post(_CLASSIFY, self._images.clock)

    async def several_images(self) -> None:
        images = self._images
        await self._post_files(_CLASSIFY, [images.clock, images.crossword, images.cut_off, images.clock])

    async def features(self) -> None:
        await self._post(f"{_FEATURES}?normalize=true&encoding=base64", self._images.crossword)

    async def bad_images(self) -> None:
        for body in (self._images.cut_off, b"", b"not an image", self._images.vast):
            await self._post(_CLASSIFY, body)

    async def too_large(self) -> None:
        await self._post(_CLASSIFY, self._images.bulky)

    async def wrong_requests(self) -> None:
        await self._post(f"{_CLASSIFY}?model=no-such-model", self._images.clock)
        await self._post(f"{_CLASSIFY}?top_k=none", self._images.clock)
        for path in (_CLASSIFY, "/no/such/path", "/v1/models/no-such-model"):
            await self._http.get(path)
        # The server has no search index.
        await self._post(_SEARCH, self._images.clock)

    async def refused_requests(self) -> None:
        """Send an unknown host name, a forwarded request for the lens, and bytes that are not HTTP."""
        await self._http.get("/v1/models", headers={"Host": "elsewhere.example"})
        await self._http.post(_LENS, headers={"X-Forwarded-For": "192.0.2.7"})
        reader, writer = await self._connect()
        writer.write(b"\x16\x03\x01 is the start of a TLS handshake\r\n\r\n")
        await reader.read()
        writer.close()

    async def disconnect(self) -> None:
        """Disconnect before the response."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await self._post_files(_CLASSIFY, [self._images.crossword] * 32)

    async def overload(self) -> None:
        """Send more images at once than the capacity."""
        await asyncio.gather(*(self._post_files(_FEATURES, [self._images.clock] * 30) for _ in range(4)))

    async def too_slow_to_decode(self) -> None:
        """Send more pixels than the server can decode before the deadline."""
        await self._post_files(_CLASSIFY, [self._images.slow] * 60)

    async def slow_sender(self) -> None:
        """Send half a body and wait until the server closes the connection."""
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
    """Send requests of every kind to the server at `address` until cancelled."""
    images = draw_images()
    async with httpx2.AsyncClient(base_url=address, timeout=60) as http, asyncio.TaskGroup() as tasks:
        client = Client(http, images)
        for request, pause_s in (
            (client.one_image, 0.05),
            (client.one_image, 0.1),
            (client.several_images, 0.5),
            (client.features, 0.2),
            (client.bad_images, 1),
            (client.too_large, 2),
            (client.wrong_requests, 2),
            (client.refused_requests, 2),
            (client.disconnect, 2),
            (client.overload, 5),
            (client.too_slow_to_decode, 8),
            (client.slow_sender, 4),
            (client.lens, 10),
            (client.operators, 2),
        ):
            tasks.create_task(_repeat(request, pause_s))


async def _repeat(request: Callable[[], Awaitable[None]], pause_s: float) -> None:
    while True:
        # The server may close connections, restart or not be started yet.
        with contextlib.suppress(httpx2.HTTPError, OSError):
            await request()
        await asyncio.sleep(pause_s)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(send(sys.argv[1]))
