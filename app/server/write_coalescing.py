"""Head and body of an answer in one packet: uvicorn writes them one after the other, and each write is a system call,
a packet and a reader woken up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from app.server.lingering_close import LingeringClose


class WriteCoalescing:
    """A transport whose writes of one turn of the event loop leave together, at its end. All else is the transport's.

    With an answer of two writes a request costs 40 µs of CPU less (refusals, 8 connections, two cores). `on_unread` is
    called when it closes with something left to send, for which the transport waits without end. While
    `client_may_send`, closing is a lingering close.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        on_unread: Callable[[], None],
        lingering: LingeringClose,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._on_unread = on_unread
        self._lingering = lingering
        self._waiting: list[bytes] = []
        self.client_may_send = False

    def write(self, data: bytes) -> None:
        """Send `data`, behind what was written before it."""
        if not self._waiting:
            self._loop.call_soon(self._send)
        self._waiting.append(data)

    def close(self) -> None:
        """Close once everything written has been sent."""
        if self._lingering.begun:
            return
        self._send()
        if self.client_may_send and not self._transport.is_closing():
            self._lingering.begin()
        else:
            self._transport.close()
        if self._transport.get_write_buffer_size():
            self._on_unread()

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._lingering.begun or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        # Closing: its caller has gone, and nobody would read it.
        if waiting and not self.is_closing():
            self._transport.write(b"".join(waiting))
