"""Prepared requests over kept connections, on httptools: a cheap client for loads that share cores with the server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import cast

import httptools


class Exchange:
    """A request and its result: a status (0 if the connection ended first) and selected header fields of the answer,
    with names in lower case. `done` is called at its end."""

    __slots__ = ("_done", "ended_at", "fields", "scheduled_at", "sent_at", "status", "wire")

    def __init__(self, scheduled_at: float, wire: bytes, done: Callable[[Exchange], None]) -> None:
        self.scheduled_at = scheduled_at
        self.wire = wire
        self.status = 0
        self.fields: dict[bytes, bytes] = {}
        self.sent_at = self.ended_at = perf_counter()
        self._done = done

    def end(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Now."""
        self.ended_at = perf_counter()
        self.status = status
        self.fields = fields
        self._done(self)

    @property
    def latency_ms(self) -> float:
        """Return the latency from the scheduled moment."""
        return (self.ended_at - self.scheduled_at) * 1e3

    @property
    def answer_ms(self) -> float:
        """Return the latency from the moment of sending."""
        return (self.ended_at - self.sent_at) * 1e3

    @property
    def late_ms(self) -> float:
        """Return the delay by the generator itself."""
        return (self.sent_at - self.scheduled_at) * 1e3


class Connections:
    """A pool of connections to one server, one for each concurrent exchange. Keeps the header fields in `fields`."""

    def __init__(self, host: str, port: int, kept_fields: frozenset[bytes]) -> None:
        self._host = host
        self._port = port
        self.kept_fields = kept_fields
        self.idle: deque[_Connection] = deque()
        self.under_way = 0
        self._none_under_way = asyncio.Event()
        self._none_under_way.set()
        self._connecting: set[asyncio.Task[None]] = set()

    def send(self, exchange: Exchange) -> None:
        """Send on an idle connection or a new one."""
        self.under_way += 1
        self._none_under_way.clear()
        while self.idle:
            # The longest idle one, before the server closes it.
            connection = self.idle.popleft()
            if connection.open:
                connection.send(exchange)
                return
        task = asyncio.create_task(self._connect(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def ended(self, exchange: Exchange, status: int, fields: dict[bytes, bytes]) -> None:
        """Called by a connection when `exchange` has ended."""
        exchange.end(status, fields)
        self.under_way -= 1
        if not self.under_way:
            self._none_under_way.set()

    async def all_ended(self, timeout_s: float) -> None:
        """Wait until every exchange has ended. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._none_under_way.wait()

    def close(self) -> None:
        """Close all idle connections."""
        while self.idle:
            self.idle.popleft().close()

    async def _connect(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except OSError:
            self.ended(exchange, 0, {})
        else:
            connection.send(exchange)


class _Connection(asyncio.Protocol):
    """A connection for one exchange after another, which returns to the idle ones of `pool` after each."""

    def __init__(self, pool: Connections) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._fields: dict[bytes, bytes] = {}
        self._parser = httptools.HttpResponseParser(self)

    @property
    def open(self) -> bool:
        """Return whether the connection is open."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange) -> None:
        """Send the next request. The previous exchange must have ended."""
        self._exchange = exchange
        exchange.sent_at = perf_counter()
        if self._transport is None or self._transport.is_closing():
            self._end(0)
        else:
            self._transport.write(exchange.wire)

    def close(self) -> None:
        """Close the connection. The previous exchange must have ended."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            # Not HTTP: counts as no answer.
            if self._transport is not None:
                self._transport.abort()

    def on_message_begin(self) -> None:
        """Callback of the parser."""
        self._fields = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Callback of the parser."""
        name = name.lower()
        if name in self._pool.kept_fields:
            self._fields[name] = value

    def on_message_complete(self) -> None:
        """Callback of the parser."""
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
        self._end(self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        self._fields = {}
        self._end(0)

    def _end(self, status: int) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if self.open:
            self._pool.idle.append(self)
        self._pool.ended(exchange, status, self._fields)
