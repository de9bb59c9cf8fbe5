"""One connection of a caller: uvicorn's, with bounds on what it reads before an application hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any, ClassVar, Self, cast

from starlette.types import Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.allowed_hosts import authority_error
from app.http.disconnect import ClientDisconnect
from app.http.problem_response import problem_bytes, problem_response
from app.http.problems import (
    HEADERS_TOO_LARGE,
    MALFORMED_REQUEST,
    TOO_FINELY_CHUNKED,
    Row,
    SlowBodyError,
    row_of,
)
from app.observability.request_log import log_refused_connection
from app.server.lingering_close import LingeringClose
from app.server.no_upgrades import IgnoreUpgradeParser
from app.server.slow_readers import SlowReaders
from app.server.write_coalescing import WriteCoalescing

# Called with what a caller is told, and the seconds from the first byte of what has not become a request to there; None
# where it has, which tells of itself.
OnRefusal = Callable[[Row, float | None], None]

# As much as nginx and Apache take for a request line with its headers, and more than any client sends.
_MOST_HEAD_BYTES = 32 * 1024

# Each chunk of a body costs several calls on the event loop, however few bytes it has. Nobody is asked why the first
# thousands are small.
_FREE_CHUNKS = 4096
_LEAST_MEAN_CHUNK_BYTES = 32

# From the decision to stop until connections without a request are closed: what their callers had sent by then has
# arrived, and is answered.
_LAST_REQUESTS_S = 0.5


class BoundedConnection(HttpToolsProtocol):
    """Its callers have `head_timeout_s` for request line and headers, for the rest of a body whose request has been
    answered, and to read some of their answers.

    uvicorn waits for them for ever and keeps any number: a connection that begins a request and does not end it
    would cost its memory and its file descriptor as long as its caller likes.
    """

    head_timeout_s: ClassVar[float]
    on_refusal: OnRefusal

    # Between the end of a request and the end of the next one's headers.
    _in_head = True
    _head_began_at = 0.0
    # What has come since the parser told of something that it does not keep: an unfinished head, or fields and
    # extensions around the chunks of a body. Counted as it is read, in whole reads.
    _untold_bytes = 0
    # Of the body under way.
    _chunks = 0
    _body_bytes = 0
    _head_ended = False
    _too_slow: asyncio.TimerHandle | None = None
    _unread: SlowReaders
    _lingering: LingeringClose
    _writes: WriteCoalescing
    _disconnect: ClientDisconnect
    _parser: IgnoreUpgradeParser
    _ending = False
    # What came after the requests so far is none: they are answered, and nothing more is read.
    _read_to_its_end = False

    @classmethod
    def with_bounds(cls, head_timeout_s: float, on_refusal: OnRefusal, **given: Any) -> type[Self]:
        """The protocol class of a server, with its class variables; `given` are those of a subclass."""
        values = {"head_timeout_s": head_timeout_s, "on_refusal": staticmethod(on_refusal), **given}
        return type(cls.__name__, (cls,), values)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._unread = SlowReaders(transport, self.loop, self.head_timeout_s)
        self._lingering = LingeringClose(transport, self.loop, self.head_timeout_s)
        self._writes = WriteCoalescing(transport, self.loop, self._unread.begin, self._lingering)
        # Neither it nor the parser holds the connection once that is lost: it goes without the garbage collector.
        self._disconnect = ClientDisconnect(transport, partial(_close_soon, self._writes, self.loop))
        super().connection_made(self._writes)  # type: ignore[arg-type]  # it is one by its methods
        self._parser = IgnoreUpgradeParser(self)
        self.parser = self._parser  # type: ignore[assignment]  # it is one by its methods
        self.expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_of_waiting()
        super().connection_lost(exc)
        del self._parser
        self._unread.end()
        self._lingering.end()
        self._disconnect.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.begin()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._unread.end()

    def data_received(self, data: bytes) -> None:
        if self._lingering.begun:
            self._lingering.received(len(data))
            return
        if self._read_to_its_end:
            return
        began_in_head, self._head_ended = self._in_head, False
        if began_in_head and self._too_slow is None:
            # The next request of a connection that lives on; between requests uvicorn's own timer runs.
            self.expect()
        if began_in_head and not self._untold_bytes:
            self._head_began_at = perf_counter()
        # What the parser has of an unfinished head it keeps, and tells of it only at the end of each header.
        self._untold_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing() or self._read_to_its_end:
            return
        if self._head_ended or self._in_head != began_in_head:
            self._untold_bytes = 0
        elif self._untold_bytes > _MOST_HEAD_BYTES:
            self._end_with_fields(in_head=began_in_head)
        if not began_in_head and self._in_head:
            self.rest()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Nobody here reads fields that follow a body, and uvicorn would keep them all.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._parser.asked_to_leave:
            return
        if self.transport.is_closing():
            # Behind a request whose answer was the last.
            raise _BrokenOffError
        if self._untold_bytes > _MOST_HEAD_BYTES and self._head_bytes() > _MOST_HEAD_BYTES:
            # It came in one read with its end.
            self._end_with_fields(in_head=True)
            raise _BrokenOffError
        fault = self._fault_of_head()
        if fault is not None:
            self._refuse(MALFORMED_REQUEST, fault)
            raise _BrokenOffError
        if self.answered_at_head():
            return
        self._disconnect.attach_to(cast(Scope, self.scope))
        # Raises for a target that is none: so far it is a head, and refused as one.
        super().on_headers_complete()
        self.end_head()
        if self._ending and self.cycle is not None:
            self.cycle.keep_alive = False

    def answered_at_head(self) -> bool:
        """Answer the request whose head has been read, if that needs no application; for subclasses."""
        return False

    def on_chunk_header(self) -> None:
        self.told()
        self._chunks += 1
        if self._chunks > _FREE_CHUNKS and self._body_bytes < self._chunks * _LEAST_MEAN_CHUNK_BYTES:
            detail = f"After {_FREE_CHUNKS} chunks a body needs {_LEAST_MEAN_CHUNK_BYTES} bytes in each on average."
            self._break_off(TOO_FINELY_CHUNKED, detail)
            # Ends the parser's work on what has been read with it.
            raise _BrokenOffError

    def on_body(self, body: bytes) -> None:
        self.told()
        self._body_bytes += len(body)
        if self.cycle.response_complete:
            return
        kept = cast(bytes | bytearray, self.cycle.body)
        if not kept:
            # As it is, which is how most images come. uvicorn would copy it into what it keeps, and out again.
            super().on_body(b"")
            self.cycle.body = body  # type: ignore[assignment]  # what has come so far is read as bytes in any case
            if len(body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            return
        if isinstance(kept, bytes):
            # Bytes do not grow: each of many small pieces would have all before it copied.
            self.cycle.body = bytearray(kept)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._parser.asked_to_leave:
            return
        self.end_body()
        super().on_message_complete()
        if not self.pipeline:
            # Where nothing is read, nobody's leaving is heard of.
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and self.between_requests() and not self.transport.is_closing():
            # Answered before its body has ended: no route waits for the rest any more, with its own deadline.
            self.expect()

    def shutdown(self) -> None:
        """End after the request under way. Without one, wait for any that is on its way: uvicorn closes at once, and
        what a caller sent a moment before, on a connection that lives on, would be lost unread."""
        if not self._ending and self.between_requests():
            self.loop.call_later(_LAST_REQUESTS_S, self._end)
        else:
            super().shutdown()
        self._lingering.hurry()
        self._ending = True

    def end_head(self) -> None:
        """Its body comes next."""
        self._in_head = False
        self._head_ended = True
        self._writes.client_may_send = True
        self._chunks = self._body_bytes = 0
        self._end_of_waiting()

    def end_body(self) -> None:
        """The next request's head comes next, which may be in the same piece."""
        self._in_head = True
        self._head_began_at = perf_counter()
        # Requests that wait may have more behind them, which is not read until they are answered.
        self._writes.client_may_send = bool(self.pipeline)
        self._end_of_waiting()

    def told(self) -> None:
        """The parser has told of all that it read, and keeps nothing."""
        self._untold_bytes = 0

    def usual_headers(self) -> dict[str, str]:
        """What uvicorn puts into every answer: the date."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.server_state.default_headers}

    def expect(self) -> None:
        """Give the caller his time, for a head or for the rest of a body that nobody waits for."""
        self._too_slow = self.loop.call_later(self.head_timeout_s, self._give_up)

    def between_requests(self) -> bool:
        """Whether every request so far has its whole answer."""
        # None before the first request, whatever uvicorn's annotation says.
        return bool(getattr(self.cycle, "response_complete", True))

    def rest(self) -> None:
        """Keep the connection for as long as uvicorn does, from now on, unless an answer is under way."""
        if self.between_requests() and self.timeout_keep_alive_task is None:
            # uvicorn's timer for connections without a request ended with the first byte that came after the answer.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def send_400_response(self, msg: str) -> None:
        if self.transport.is_closing() or self._read_to_its_end:
            return
        if self._in_head:
            self._refuse(MALFORMED_REQUEST, msg)
        else:
            self._break_off(MALFORMED_REQUEST, msg)

    def _end(self) -> None:
        if self.between_requests() and not self.transport.is_closing():
            self.transport.close()

    def _fault_of_head(self) -> str | None:
        if self._parser.get_method() == b"CONNECT":
            # Its target is no resource of this server's, whatever it looks like.
            return "This is no proxy: CONNECT is not answered."
        return authority_error(self.url, self.headers, host_needed=self._parser.get_http_version() == "1.1")

    def _head_bytes(self) -> int:
        # As it is written at the least: with a colon and the end of its line for each field.
        return len(self.url) + sum(len(name) + len(value) + 3 for name, value in self.headers)

    def _end_of_waiting(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None

    def _give_up(self) -> None:
        if self._in_head and self._untold_bytes:
            self._refuse(row_of(SlowBodyError(0)), f"The headers had not arrived after {self.head_timeout_s:g} s.")
        else:
            # It has asked for nothing, or has its answer, and has had its time to send the rest.
            self._writes.client_may_send = False
            self.transport.close()

    def _end_with_fields(self, *, in_head: bool) -> None:
        if in_head:
            self._refuse(HEADERS_TOO_LARGE, f"Request line and headers are over {_MOST_HEAD_BYTES} bytes.")
        else:
            self._break_off(HEADERS_TOO_LARGE, f"Fields around the body are over {_MOST_HEAD_BYTES} bytes.")

    def _break_off(self, row: Row, detail: str) -> None:
        """End a request whose body is under way: its handler, who counts it, hears that its caller has gone."""
        self._end_of_waiting()
        if self.pipeline:
            # Its handler has not begun, nor may its answer, until the requests before it have theirs.
            self.on_refusal(row, perf_counter() - self._head_began_at)
            self.pipeline[0] = self.cycle, cast(Any, problem_response(row, detail, headers={"Connection": "close"}))
            self._read_no_more()
        else:
            self.on_refusal(row, None)
            # Once an answer has begun, another would be read as part of it.
            self._writes.client_may_send = not self.cycle.response_started
            if not self.cycle.response_started:
                self.transport.write(problem_bytes(row, detail, headers=self.usual_headers(), last=True))
            self.cycle.disconnected = not self.cycle.response_complete
            self.cycle.message_event.set()
            self._disconnect.cancel()
            self.transport.close()
        log_refused_connection(self.client[0] if self.client else None, row)

    def _refuse(self, row: Row, detail: str) -> None:
        self._end_of_waiting()
        self.on_refusal(row, perf_counter() - self._head_began_at if self._in_head else None)
        self._in_head = False
        log_refused_connection(self.client[0] if self.client else None, row)
        if not self.between_requests():
            # Requests before it have their answers first, the last of which ends the connection: in their place, or
            # in the midst of one, another would be taken for theirs.
            self._read_no_more()
        elif not self.transport.is_closing():
            self._writes.client_may_send = True
            self.transport.write(problem_bytes(row, detail, headers=self.usual_headers(), last=True))
            self.transport.close()

    def _read_no_more(self) -> None:
        """End with the answer to the last request that has been read."""
        self._read_to_its_end = True
        self.cycle.keep_alive = False
        self._writes.client_may_send = True
        self.flow.pause_reading()


def _close_soon(writes: WriteCoalescing, loop: asyncio.AbstractEventLoop) -> None:
    """From any thread, also one that looks when the service has ended and the event loop with it."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(writes.close)


class _BrokenOffError(Exception):
    """Raised through the parser, which stops at it. What has not been refused by then is, as malformed."""
