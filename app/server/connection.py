"""One client connection: uvicorn's HTTP/1.1 protocol with limits on what it reads before the application is called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any, ClassVar, Self, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.load_shedding import LoadShedding, Shed
from app.http.disconnect import ClientDisconnect
from app.http.hosts import authority_error
from app.http.problems import (
    HEADERS_TOO_LARGE,
    MALFORMED_REQUEST,
    TOO_FINELY_CHUNKED,
    Row,
    SlowBodyError,
    problem_bytes,
    problem_response,
    row_of,
)
from app.observability.request_log import log_refused_connection
from app.server.no_upgrades import feed, upgrade_requested
from app.server.transport import LingeringTransport, SlowReaderTimeout

# Callback(problem, seconds since the first byte). `seconds` is None if the data had already become a request, because
# that request reports itself.
OnRefusal = Callable[[Row, float | None], None]

# Maximum size of request line and headers, as in nginx and Apache.
_MAX_HEAD_BYTES = 32 * 1024

# Each chunk of a body costs several calls on the event loop, whatever its size. The first chunks may be of any size.
_FREE_CHUNKS = 4096
_MIN_MEAN_CHUNK_BYTES = 32

# Seconds from the start of a shutdown until idle connections are closed. Requests that clients had sent by then have
# arrived, and are answered.
_LAST_REQUESTS_S = 0.5


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol with limits on request heads, on body framing and on slow clients.

    A client has `head_timeout_s` to send a request head, to send the rest of a body whose request has been answered,
    and to read 64 KiB of a response. In uvicorn itself an unfinished request keeps its memory and its file descriptor
    for as long as the client likes.
    """

    head_timeout_s: ClassVar[float]
    on_refusal: OnRefusal

    transport: LingeringTransport  # type: ignore[assignment]  # has the methods that uvicorn calls

    # True between the end of a request and the end of the next head.
    _in_head = True
    _head_started_at = 0.0
    # Bytes received since the last parser callback. They belong to something unfinished: a request head, chunk
    # extensions, or trailers. Whole reads are counted.
    _unparsed_bytes = 0
    # Of the current body.
    _chunks = 0
    _body_bytes = 0
    # Whether a head ended within the current read.
    _head_ended = False
    _receive_timer: asyncio.TimerHandle | None = None
    _slow_reader: SlowReaderTimeout
    _disconnect: ClientDisconnect
    _shutting_down = False
    # Malformed data follows the requests received so far: they are answered, and nothing more is read.
    _reading_ended = False

    @classmethod
    def with_bounds(cls, head_timeout_s: float, on_refusal: OnRefusal, **attributes: Any) -> type[Self]:
        """Return a protocol class for uvicorn with these class attributes; `attributes` are those of a subclass."""
        values = {"head_timeout_s": head_timeout_s, "on_refusal": staticmethod(on_refusal), **attributes}
        return type(cls.__name__, (cls,), values)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._slow_reader = SlowReaderTimeout(transport, self.loop, self.head_timeout_s)
        lingering = LingeringTransport(transport, self.loop, self.head_timeout_s, self._slow_reader.start)
        self._disconnect = ClientDisconnect(transport, lingering.close_threadsafe)
        super().connection_made(lingering)  # type: ignore[arg-type]
        self.start_receive_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_receive_timer()
        super().connection_lost(exc)
        self._slow_reader.cancel()
        self.transport.cancel_timer()
        self._disconnect.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_reader.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._slow_reader.cancel()

    def data_received(self, data: bytes) -> None:
        if self.transport.lingering:
            self.transport.discard(len(data))
            return
        if self._reading_ended:
            return
        started_in_head, self._head_ended = self._in_head, False
        if started_in_head and self._receive_timer is None:
            # The next request on this connection; between requests uvicorn's keep-alive timer runs.
            self.start_receive_timer()
        if started_in_head and not self._unparsed_bytes:
            self._head_started_at = perf_counter()
        self._unparsed_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            feed(self, data)
        except httptools.HttpParserError:
            self._refuse_malformed("Invalid HTTP request received.")
            return
        if self.transport.is_closing() or self._reading_ended:
            return
        if self._head_ended or self._in_head != started_in_head:
            self._unparsed_bytes = 0
        elif self._unparsed_bytes > _MAX_HEAD_BYTES:
            self._refuse_fields(in_head=started_in_head)
        if not started_in_head and self._in_head:
            self.start_keep_alive()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Drop trailers: uvicorn would add them, without limit, to the headers of the request.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if upgrade_requested(self):
            return
        if self.transport.is_closing():
            # Pipelined behind a request with `Connection: close`.
            raise _StopParsingError
        if self._unparsed_bytes > _MAX_HEAD_BYTES and self._head_bytes() > _MAX_HEAD_BYTES:
            # The whole head arrived in one read.
            self._refuse_fields(in_head=True)
            raise _StopParsingError
        fault = self._fault_of_head()
        if fault is not None:
            self._refuse(MALFORMED_REQUEST, fault)
            raise _StopParsingError
        if self.answer_at_head():
            return
        self._disconnect.attach_to(cast(Scope, self.scope))
        # Raises for an invalid target, which is refused as a malformed head.
        super().on_headers_complete()
        self.start_body()
        if self._shutting_down and self.cycle is not None:
            self.cycle.keep_alive = False

    def answer_at_head(self) -> bool:
        """Answer the request at its head, without the application, and return True; for subclasses."""
        return False

    def on_chunk_header(self) -> None:
        self.count_as_parsed()
        self._chunks += 1
        if self._chunks > _FREE_CHUNKS and self._body_bytes < self._chunks * _MIN_MEAN_CHUNK_BYTES:
            detail = f"After {_FREE_CHUNKS} chunks a body needs {_MIN_MEAN_CHUNK_BYTES} bytes in each on average."
            self._refuse_body(TOO_FINELY_CHUNKED, detail)
            raise _StopParsingError

    def on_body(self, body: bytes) -> None:
        self.count_as_parsed()
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if upgrade_requested(self):
            return
        self.end_body()
        super().on_message_complete()
        if not self.pipeline:
            # A disconnect is only detected while data is read.
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and self.between_requests() and not self.transport.is_closing():
            # Answered before the body has ended: the handler's own timeout no longer limits the rest.
            self.start_receive_timer()

    def shutdown(self) -> None:
        """Close after the current request; without one, wait for requests that are already in transit.

        uvicorn closes an idle connection at once, which loses a request that the client sent a moment before.
        """
        if not self._shutting_down and self.between_requests():
            self.loop.call_later(_LAST_REQUESTS_S, self._close_if_idle)
        else:
            super().shutdown()
        self.transport.shorten()
        self._shutting_down = True

    def start_body(self) -> None:
        """Enter the state after a request head."""
        self._in_head = False
        self._head_ended = True
        self.transport.client_may_send = True
        self._chunks = self._body_bytes = 0
        self._cancel_receive_timer()

    def end_body(self) -> None:
        """Enter the state after a request body. The next head may follow in the same read."""
        self._in_head = True
        self._head_started_at = perf_counter()
        # Behind pipelined requests the client may have sent more, which is not read until they are answered.
        self.transport.client_may_send = bool(self.pipeline)
        self._cancel_receive_timer()

    def count_as_parsed(self) -> None:
        """Note that the parser has processed all received bytes."""
        self._unparsed_bytes = 0

    def default_headers(self) -> dict[str, str]:
        """Return the headers that uvicorn adds to every response: the date."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.server_state.default_headers}

    def start_receive_timer(self) -> None:
        """Limit the time to receive a head, or the rest of a body whose request has been answered."""
        self._receive_timer = self.loop.call_later(self.head_timeout_s, self._receive_timed_out)

    def between_requests(self) -> bool:
        """Return whether every request so far has its complete response."""
        # `cycle` is None before the first request, contrary to uvicorn's annotation.
        return bool(getattr(self.cycle, "response_complete", True))

    def start_keep_alive(self) -> None:
        """Restart uvicorn's keep-alive timer, unless a request is being answered.

        uvicorn stops the timer at the first byte after a response, and restarts it only after the next response.
        """
        if self.between_requests() and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _close_if_idle(self) -> None:
        if self.between_requests() and not self.transport.is_closing():
            self.transport.close()

    def _fault_of_head(self) -> str | None:
        if self.parser.get_method() == b"CONNECT":
            # This server has no resource that CONNECT could name, whatever its target looks like.
            return "This is no proxy: CONNECT is not answered."
        return authority_error(self.url, self.headers, host_needed=self.parser.get_http_version() == "1.1")

    def _head_bytes(self) -> int:
        # At least this many bytes: each field has a colon and a line end.
        return len(self.url) + sum(len(name) + len(value) + 3 for name, value in self.headers)

    def _cancel_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _receive_timed_out(self) -> None:
        if self._in_head and self._unparsed_bytes:
            self._refuse(row_of(SlowBodyError(0)), f"The headers had not arrived after {self.head_timeout_s:g} s.")
        else:
            # No request was begun, or it has been answered and its body is late.
            self.transport.client_may_send = False
            self.transport.close()

    def _refuse_malformed(self, detail: str) -> None:
        if self.transport.is_closing() or self._reading_ended:
            return
        if self._in_head:
            self._refuse(MALFORMED_REQUEST, detail)
        else:
            self._refuse_body(MALFORMED_REQUEST, detail)

    def _refuse_fields(self, *, in_head: bool) -> None:
        if in_head:
            self._refuse(HEADERS_TOO_LARGE, f"Request line and headers are over {_MAX_HEAD_BYTES} bytes.")
        else:
            self._refuse_body(HEADERS_TOO_LARGE, f"Fields around the body are over {_MAX_HEAD_BYTES} bytes.")

    def _refuse_body(self, row: Row, detail: str) -> None:
        """Refuse a request during its body. Its handler, which counts it, sees a disconnected client."""
        self._cancel_receive_timer()
        if self.pipeline:
            # Its handler has not started; earlier requests are answered first.
            self.on_refusal(row, perf_counter() - self._head_started_at)
            self.pipeline[0] = self.cycle, cast(Any, problem_response(row, detail, headers={"Connection": "close"}))
            self._stop_reading()
        else:
            self.on_refusal(row, None)
            # After the start of its response, the client would read another response as part of it.
            self.transport.client_may_send = not self.cycle.response_started
            if not self.cycle.response_started:
                self.transport.write(problem_bytes(row, detail, headers=self.default_headers(), last=True))
            self.cycle.disconnected = not self.cycle.response_complete
            self.cycle.message_event.set()
            self._disconnect.cancel()
            self.transport.close()
        log_refused_connection(self.client[0] if self.client else None, row)

    def _refuse(self, row: Row, detail: str) -> None:
        """Refuse data that has not become a request."""
        self._cancel_receive_timer()
        self.on_refusal(row, perf_counter() - self._head_started_at if self._in_head else None)
        self._in_head = False
        log_refused_connection(self.client[0] if self.client else None, row)
        if not self.between_requests():
            # Earlier requests are answered first, and the last response ends the connection: the client would read a
            # refusal as the response to one of them.
            self._stop_reading()
        elif not self.transport.is_closing():
            self.transport.client_may_send = True
            self.transport.write(problem_bytes(row, detail, headers=self.default_headers(), last=True))
            self.transport.close()

    def _stop_reading(self) -> None:
        """Read nothing more, and close after the response to the last request."""
        self._reading_ended = True
        self.cycle.keep_alive = False
        self.transport.client_may_send = True
        self.flow.pause_reading()


class _StopParsingError(Exception):
    """Raised in a parser callback to stop the parser. What has not been refused by then is refused as malformed."""


def shedding_connection(
    head_timeout_s: float, on_refusal: OnRefusal, shedding: LoadShedding
) -> type[BoundedConnection]:
    """Return a protocol class for uvicorn with the limits of BoundedConnection and the refusals of `shedding`."""
    return _SheddingConnection.with_bounds(head_timeout_s, on_refusal, shedding=shedding)


class _SheddingConnection(BoundedConnection):
    shedding: ClassVar[LoadShedding]

    # Whether the current body belongs to a request that has been refused.
    _shed = False

    def answer_at_head(self) -> bool:
        """Refuse the request if `shedding` decides so."""
        shed = self._refusal() if self.shedding.on else None
        if shed is None:
            return False
        self._shed = True
        self.start_body()
        self.transport.write(shed.answer)
        if shed.last:
            self.transport.close()
        else:
            # The rest of the body is short.
            self.start_receive_timer()
        return True

    def on_chunk_header(self) -> None:
        if not self._shed:
            super().on_chunk_header()

    def on_body(self, body: bytes) -> None:
        if self._shed:
            self.count_as_parsed()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._shed:
            super().on_message_complete()
            return
        self._shed = False
        self.end_body()
        if not self.transport.is_closing():
            self.start_keep_alive()

    def _refusal(self) -> Shed | None:
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        if not self.between_requests():
            # Responses are sent in the order of their requests.
            return None
        path, _, query = self.url.partition(b"?")
        # Paths are compared as sent: the image routes need no decoding, and all others go to the application.
        scope = cast(Scope, self.scope)
        scope.update(method="POST", path=path.decode("ascii", "replace"), raw_path=path, query_string=query)
        keep_alive = self.parser.should_keep_alive() and not self.expect_100_continue
        return self.shedding.shed(scope, self.default_headers(), keep_alive=keep_alive)
