"""One connection of a flood, and one exchange on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import cast

from reliability.wire import field

_END_OF_HEAD = b"\r\n\r\n"


class Exchange:
    """A request and what became of it: a status, 0 for a connection that ended first."""

    __slots__ = ("_done", "ended_at", "refusal_in_form", "scheduled_at", "sent_at", "status", "wire")

    def __init__(self, scheduled_at: float, wire: bytes, done: Callable[[], None]) -> None:
        self.scheduled_at = scheduled_at
        self.wire = wire
        self.status = 0
        self.sent_at = self.ended_at = perf_counter()
        self.refusal_in_form = True
        self._done = done

    def end(self, status: int, *, refusal_in_form: bool) -> None:
        """Now."""
        self.ended_at = perf_counter()
        self.status = status
        self.refusal_in_form = refusal_in_form
        self._done()

    @property
    def latency_ms(self) -> float:
        """From the moment at which it should have left."""
        return (self.ended_at - self.scheduled_at) * 1e3

    @property
    def answer_ms(self) -> float:
        """From the moment at which it left."""
        return (self.ended_at - self.sent_at) * 1e3

    @property
    def late_ms(self) -> float:
        """What the generator itself kept it waiting."""
        return (self.sent_at - self.scheduled_at) * 1e3


class FloodConnection(asyncio.Protocol):
    """Exchanges one after another; `on_idle` has it back after each."""

    def __init__(self, on_idle: Callable[[FloodConnection], None]) -> None:
        self._on_idle = on_idle
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._received = b""

    @property
    def open(self) -> bool:
        """Whether there is a server at its other end."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange) -> None:
        """The next request. None may be under way."""
        self._exchange = exchange
        self._received = b""
        exchange.sent_at = perf_counter()
        if self._transport is None or self._transport.is_closing():
            self._end(0)
        else:
            self._transport.write(exchange.wire)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, ended, body = self._received.partition(_END_OF_HEAD)
        if not ended:
            return
        head = head.lower()
        if len(body) < int(field(head, b"content-length") or 0):
            return
        status = int(head[9:12])
        if field(head, b"connection") == b"close" and self._transport is not None:
            self._transport.close()
        self._end(status, in_form=field(head, b"retry-after") is not None)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        self._end(0)

    def _end(self, status: int, *, in_form: bool = False) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if self.open:
            self._on_idle(self)
        exchange.end(status, refusal_in_form=in_form)
