"""Requests as bytes and connections that carry them: to be cut short, trickled and abandoned at any byte."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

CLASSIFY = "/v1/classify"
FEATURES = "/v1/features"
LENS = "/debug/grad-modes"
METRICS = "/metrics"

# Beyond any wait that the service's own deadlines allow.
ANSWER_TIMEOUT_S = 90.0

_END_OF_HEAD = b"\r\n\r\n"


class Place(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


class Request(NamedTuple):
    """Bytes to send, the route they are for, and how many images a server that reads them whole finds."""

    wire: bytes
    route: str
    images: int = 0


class Answer(NamedTuple):
    """A whole one. The head is in lower case."""

    status: int
    head: bytes
    body: bytes


def get(route: str) -> Request:
    """Without a body."""
    return Request(f"GET {route} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), route)


def post(path: str, body: bytes = b"", *, images: int = 1, content_type: str = "application/octet-stream") -> Request:
    """A request of one image as it is, unless `images` says otherwise."""
    about = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{about}\r\n\r\n"
    return Request(head.encode() + body, path.partition("?")[0], images)


def multipart(path: str, images: Sequence[bytes]) -> Request:
    """A request of several images."""
    head = b'--cut\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    body = b"".join(head + image + b"\r\n" for image in images) + b"--cut--\r\n"
    return post(path, body, images=len(images), content_type="multipart/form-data; boundary=cut")


class Connection:
    """One at a time, opened when needed and kept as long as the server keeps it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.leave()

    async def answer_to(self, request: Request) -> Answer:
        """One exchange. Raises OSError, EOFError when the connection ends before the answer does; TimeoutError."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await self.send(request.wire)
            return await self.receive()

    async def send(self, data: bytes) -> None:
        """Without waiting for an answer. Raises OSError."""
        _, writer = await self._open()
        writer.write(data)
        await writer.drain()

    async def receive(self) -> Answer:
        """The next answer. Raises OSError, EOFError."""
        reader, _ = await self._open()
        head = (await reader.readuntil(_END_OF_HEAD)).lower()
        body = await reader.readexactly(int(field(head, b"content-length") or 0))
        if field(head, b"connection") == b"close":
            await self.leave()
        return Answer(int(head.split(maxsplit=2)[1]), head, body)

    async def ended(self) -> None:
        """Return when the server has closed it."""
        reader, _ = await self._open()
        while await reader.read(65536):
            pass

    async def leave(self) -> None:
        """Close it, whatever is under way."""
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._place)
        return self._streams


def field(head: bytes, name: bytes) -> bytes | None:
    """The value of a header of a head in lower case; None where there is none."""
    _, found, after = head.partition(b"\r\n" + name + b":")
    return after.partition(b"\r\n")[0].strip() if found else None
