"""Requests ready-made as bytes, over connections that are kept, on httptools: for loads that share their processor with
the server, of which a client for every purpose would take a share that shows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import cast

import httptools


class Exchange:
    """A request and what became of it: a status, 0 for a connection that ended first, and the answer's wanted fields,
    their names in lower case. `done` is told when it has ended."""

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


class Connections:
    """As many to one server as there are exchanges under way, and those that were needed before. Of an answer's fields
    those in `wanted` are kept, named in lower case."""

    def __init__(self, host: str, port: int, wanted: frozenset[bytes]) -> None:
        self._host = host
        self._port = port
        self.wanted = wanted
        self.idle: deque[_Connection] = deque()
        self.under_way = 0
        self._none_under_way = asyncio.Event()
        self._none_under_way.set()
        self._connecting: set[asyncio.Task[None]] = set()

    def send(self, exchange: Exchange) -> None:
        """On an idle connection, or a new one."""
        self.under_way += 1
        self._none_under_way.clear()
        while self.idle:
            # The one that has been idle for longest, before the server closes it for that.
            connection = self.idle.popleft()
            if connection.open:
                connection.send(exchange)
                return
        task = asyncio.create_task(self._connect(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def ended(self, exchange: Exchange, status: int, fields: dict[bytes, bytes]) -> None:
        """Of a connection: `exchange`, just now."""
        exchange.end(status, fields)
        self.under_way -= 1
        if not self.under_way:
            self._none_under_way.set()

    async def all_ended(self, timeout_s: float) -> None:
        """Wait until none is under way. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._none_under_way.wait()

    def close(self) -> None:
        """All that are idle."""
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
    """Exchanges one after another; among the idle ones of `pool` after each."""

    def __init__(self, pool: Connections) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._fields: dict[bytes, bytes] = {}
        self._parser = httptools.HttpResponseParser(self)

    @property
    def open(self) -> bool:
        """Whether there is a server at its other end."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange) -> None:
        """The next request. None may be under way."""
        self._exchange = exchange
        exchange.sent_at = perf_counter()
        if self._transport is None or self._transport.is_closing():
            self._end(0)
        else:
            self._transport.write(exchange.wire)

    def close(self) -> None:
        """None may be under way."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            # No HTTP: as good as no answer.
            if self._transport is not None:
                self._transport.abort()

    def on_message_begin(self) -> None:
        """Of the parser."""
        self._fields = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the parser."""
        name = name.lower()
        if name in self._pool.wanted:
            self._fields[name] = value

    def on_message_complete(self) -> None:
        """Of the parser."""
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
