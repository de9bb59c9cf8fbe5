"""Requests as bytes, and connections that can stop at any byte of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

CLASSIFY = "/v1/classify"
FEATURES = "/v1/features"
LENS = "/debug/grad-modes"
METRICS = "/metrics"

# Beyond any wait that the service's own deadlines allow.
ANSWER_TIMEOUT_S = 90.0

_END_OF_HEAD = b"\r\n\r\n"


class Address(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int


class Request(NamedTuple):
    """Bytes to send, their route, the number of images in them, and the metadata of a gRPC call."""

    wire: bytes
    route: str
    images: int = 0
    metadata: Sequence[tuple[str, str]] = ()


class Answer(NamedTuple):
    """A complete answer. The head is in lower case."""

    status: int
    head: bytes
    body: bytes


def get(route: str) -> Request:
    """Return a request without a body."""
    return Request(f"GET {route} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), route)


def post(
    path: str, body: bytes = b"", *, images: int = 1, content_type: str = "application/octet-stream", more: str = ""
) -> Request:
    """Return a request whose body is one image, or `images` of them. `more` are further lines of the head."""
    about = f"Content-Type: {content_type}\r\n{more}Content-Length: {len(body)}"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{about}\r\n\r\n"
    return Request(head.encode() + body, path.partition("?")[0], images)


def multipart(path: str, images: Sequence[bytes]) -> Request:
    """Return a request of several images."""
    head = b'--cut\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    body = b"".join(head + image + b"\r\n" for image in images) + b"--cut--\r\n"
    return post(path, body, images=len(images), content_type="multipart/form-data; boundary=cut")


def of_files(path: str, images: Sequence[bytes]) -> Request:
    """Return a request of one image as its body, or of several."""
    return post(path, images[0]) if len(images) == 1 else multipart(path, images)


class Sender(Protocol):
    """A connection of any protocol."""

    async def answer_to(self, request: Request) -> Answer: ...

    async def close(self) -> None: ...


class Connection:
    """A connection that opens when needed and again after the server has closed it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def answer_to(self, request: Request) -> Answer:
        """Return the answer to a request. Raises OSError or EOFError if the connection ends first; TimeoutError."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await self.send(request.wire)
            return await self.receive()

    async def send(self, data: bytes) -> None:
        """Send bytes without waiting for an answer. Raises OSError."""
        _, writer = await self._open()
        writer.write(data)
        await writer.drain()

    async def receive(self) -> Answer:
        """Return the next answer. Raises OSError, EOFError."""
        reader, _ = await self._open()
        head = (await reader.readuntil(_END_OF_HEAD)).lower()
        body = await reader.readexactly(int(field(head, b"content-length") or 0))
        if field(head, b"connection") == b"close":
            await self.close()
        return Answer(int(head.split(maxsplit=2)[1]), head, body)

    async def ended(self) -> None:
        """Return when the server has closed it."""
        reader, _ = await self._open()
        while await reader.read(65536):
            pass

    async def close(self) -> None:
        """Close the connection, even during an exchange."""
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        return self._streams


def field(head: bytes, name: bytes) -> bytes | None:
    """Return a header's value from a head in lower case, or None."""
    _, found, after = head.partition(b"\r\n" + name + b":")
    return after.partition(b"\r\n")[0].strip() if found else None
