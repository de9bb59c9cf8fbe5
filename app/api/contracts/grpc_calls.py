"""What is read of a gRPC call: its message, and the address of its client."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

import grpc.aio

from app.http.problems import InvalidInputError, SlowBodyError


async def received(context: Any, timeout_s: float) -> bytes:
    """Return the only message of a call, as it was sent. Its handler is that of a stream: gRPC would read the message
    of a unary call before it calls the handler, without a limit of time.

    Raises SlowBodyError, InvalidInputError without a message.
    """
    try:
        async with asyncio.timeout(timeout_s):
            message = await context.read()
    except TimeoutError:
        raise SlowBodyError(timeout_s) from None
    if message is grpc.aio.EOF:
        raise InvalidInputError("The call has no message.")
    return bytes(message)


def client_of(peer: str) -> tuple[str, int] | None:
    """Return address and port of gRPC's name of a client, such as `ipv6:[::1]:4711`; None if it has none."""
    family, _, place = unquote(peer).partition(":")
    host, _, port = place.rpartition(":")
    if family not in {"ipv4", "ipv6"} or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)
