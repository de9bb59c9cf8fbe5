"""One client connection: uvicorn's HTTP/1.1 protocol with limits on what it reads before the application is called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from types import SimpleNamespace
from typing import Any, ClassVar, Self, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.load_shedding import LoadShedding
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
from app.observability.request_observer import new_request_id, stated_request_id
from app.server.transport import BoundedTransport

# Callback(problem, seconds since the first byte). `seconds` is None if the data had already become a request, because
# that request reports itself.
OnRefusal = Callable[[Row, float | None], None]

# Maximum size of request line and headers, as in nginx and Apache.
_MAX_HEAD_BYTES = 32 * 1024

# Apache accepts 100 by default. In memory, a header of three bytes takes some 100.
_MAX_FIELDS = 128

# Each chunk of a body costs several calls on the event loop, whatever its size. The first chunks may be of any size.
_FREE_CHUNKS = 4096
_MIN_MEAN_CHUNK_BYTES = 32

# Requests of a connection that wait for the one before them. In memory each takes up to a hundred times its bytes.
_MAX_PIPELINED = 100

# Seconds from the start of a shutdown until idle connections are closed. Requests that clients had sent by then have
# arrived, and are answered.
_LAST_REQUESTS_S = 0.5

# In the place of uvicorn's `cycle` before the first request, so that it need not be checked for None.
_NO_REQUEST: Any = SimpleNamespace(
    response_started=True, response_complete=True, disconnected=False, message_event=asyncio.Event()
)


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol with limits on request heads, on body framing and on slow clients, and with load shedding.

    A client has `head_timeout_s` to send a request head, to send the rest of a body whose request has been answered,
    and to read 64 KiB of a response. In uvicorn itself an unfinished request keeps its memory and its file descriptor
    for as long as the client likes.
    """

    head_timeout_s: ClassVar[float]
    on_refusal: OnRefusal
    shedding: ClassVar[LoadShedding | None]

    transport: BoundedTransport  # type: ignore[assignment]  # has the methods that uvicorn calls

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
    _disconnect: ClientDisconnect
    _shutting_down = False
    # The requests received so far are answered, and nothing more is read: malformed data follows, or too many requests.
    _reading_ended = False

    @classmethod
    def with_bounds(
        cls, head_timeout_s: float, on_refusal: OnRefusal, shedding: LoadShedding | None = None
    ) -> type[Self]:
        """Return a protocol class for uvicorn with these class attributes."""
        values = {"head_timeout_s": head_timeout_s, "on_refusal": staticmethod(on_refusal), "shedding": shedding}
        return type(cls.__name__, (cls,), values)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        bounded = BoundedTransport(transport, self.loop, self.head_timeout_s)
        self._disconnect = ClientDisconnect(transport, bounded.close_threadsafe)
        super().connection_made(bounded)  # type: ignore[arg-type]
        self.cycle = _NO_REQUEST
        self._start_receive_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_receive_timer()
        super().connection_lost(exc)
        self.transport.cancel_timers()
        self._disconnect.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.start_reader_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self.transport.cancel_reader_timer()

    def data_received(self, data: bytes) -> None:
        if self.transport.lingering:
            self.transport.discard(len(data))
            return
        if self._reading_ended:
            # Handlers that read their bodies resume reading.
            self.flow.pause_reading()
            return
        started_in_head, self._head_ended = self._in_head, False
        if started_in_head and self._receive_timer is None:
            # The next request on this connection; between requests uvicorn's keep-alive timer runs.
            self._start_receive_timer()
        if started_in_head and not self._unparsed_bytes:
            self._head_started_at = perf_counter()
        self._unparsed_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(MALFORMED_REQUEST, "Invalid HTTP request received.")
            return
        if self.transport.is_closing() or self._reading_ended:
            return
        if self._head_ended or self._in_head != started_in_head:
            self._unparsed_bytes = 0
        elif self._unparsed_bytes > _MAX_HEAD_BYTES:
            self._refuse_fields()
        if self._in_head and not self._unparsed_bytes and self._between_requests() and not self.timeout_keep_alive_task:
            # The end of a body that was answered before. uvicorn stops its keep-alive timer at the first byte after a
            # response, and restarts it only after the next response.
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Drop trailers: uvicorn would add them, without limit, to the headers of the request.
        if not self._in_head:
            return
        if len(self.headers) == _MAX_FIELDS:
            self._refuse(HEADERS_TOO_LARGE, f"There are over {_MAX_FIELDS} headers.")
            raise _StopParsingError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._upgrade_requested():
            return
        if self.transport.is_closing():
            # Pipelined behind a request with `Connection: close`.
            raise _StopParsingError
        if len(self.pipeline) >= _MAX_PIPELINED:
            # The client may send the rest again, as after any close (RFC 9112, section 9.3.2).
            self._end_reading()
            raise _StopParsingError
        if self._head_bytes() > _MAX_HEAD_BYTES:
            # The head arrived in one read, or its first part behind another request.
            self._refuse_fields()
            raise _StopParsingError
        fault = self._fault_of_head()
        if fault is not None:
            self._refuse(MALFORMED_REQUEST, fault)
            raise _StopParsingError
        if self.shedding is not None and self.shedding.on and self._shed(self.shedding):
            return
        self._disconnect.attach_to(cast(Scope, self.scope))
        # Raises for an invalid target, which is refused as a malformed head.
        super().on_headers_complete()
        self._start_body()
        if self._shutting_down:
            self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        self._unparsed_bytes = 0
        self._chunks += 1
        if self._chunks > _FREE_CHUNKS and self._body_bytes < self._chunks * _MIN_MEAN_CHUNK_BYTES:
            detail = f"After {_FREE_CHUNKS} chunks a body needs {_MIN_MEAN_CHUNK_BYTES} bytes in each on average."
            self._refuse(TOO_FINELY_CHUNKED, detail)
            raise _StopParsingError

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade_requested():
            return
        # The next head may follow in the same read.
        self._in_head = True
        self._head_started_at = perf_counter()
        # Behind pipelined requests the client may have sent more, which is not read until they are answered.
        self.transport.client_may_send = bool(self.pipeline)
        self._cancel_receive_timer()
        super().on_message_complete()
        if not self.pipeline:
            # A disconnect is only detected while data is read.
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and self._between_requests() and not self.transport.is_closing():
            # Answered before the body has ended: the handler's own timeout no longer limits the rest.
            self._start_receive_timer()

    def shutdown(self) -> None:
        """Close after the current request; without one, wait for requests that are already in transit.

        uvicorn closes an idle connection at once, which loses a request that the client sent a moment before.
        """
        if not self._shutting_down and self._between_requests():
            self.loop.call_later(_LAST_REQUESTS_S, super().shutdown)
        else:
            super().shutdown()
        self.transport.shorten_linger()
        self._shutting_down = True

    def _feed(self, data: bytes) -> None:
        """Feed `data` to the parser. A head that asks for another protocol is parsed again without that request, which
        RFC 9110, section 7.8 allows. Raises httptools.HttpParserError.

        Java's HttpClient and `curl --http2` ask for HTTP/2. httptools ends such a request at its head and treats the
        body as data of the other protocol.
        """
        # A view and a loop: one read may have a thousand such requests, which must neither be copied nor recurse.
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)
            else:
                return

    def _upgrade_requested(self) -> bool:
        """Return whether the parser is at a head that `_feed` will parse again; its callbacks must be ignored."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode("ascii")
        lines = [b" ".join([self.parser.get_method(), self.url, b"HTTP/" + version])]
        for name, value in self.headers:
            kept = value
            if name == b"connection":
                kept = b", ".join(option for option in value.split(b",") if option.strip().lower() != b"upgrade")
            if name != b"upgrade" and (kept or not value):
                lines.append(name + b": " + kept)
        return b"\r\n".join([*lines, b"", b""])

    def _fault_of_head(self) -> str | None:
        if self.parser.get_method() == b"CONNECT":
            # This server has no resource that CONNECT could name, whatever its target looks like.
            return "This is no proxy: CONNECT is not answered."
        return authority_error(self.url, self.headers, host_needed=self.parser.get_http_version() == "1.1")

    def _head_bytes(self) -> int:
        # At least this many bytes: each field has a colon and a line end.
        return len(self.url) + sum(len(name) + len(value) + 3 for name, value in self.headers)

    def _shed(self, shedding: LoadShedding) -> bool:
        """Answer the request at its head, without the application, if `shedding` refuses it; then return True."""
        # Responses are sent in the order of their requests.
        if not self._between_requests() or self.transport.get_write_buffer_size():
            # The application waits until the client has read earlier responses.
            return False
        if (self.parser.get_method(), self.parser.get_http_version()) != (b"POST", "1.1"):
            return False
        path, _, query = self.url.partition(b"?")
        # Paths are compared as sent: the image routes need no decoding, and all others go to the application.
        scope = cast(Scope, self.scope)
        scope.update(method="POST", path=path.decode("ascii", "replace"), raw_path=path, query_string=query)
        keep_alive = self.parser.should_keep_alive() and not self.expect_100_continue
        shed = shedding.shed(scope, self._default_headers(), keep_alive=keep_alive)
        if shed is None:
            return False
        # Until its end the body is ignored, because the response to the last request is complete.
        self._start_body()
        self.transport.write(shed.answer)
        if shed.last:
            self.transport.close()
        else:
            # The rest of the body is short.
            self._start_receive_timer()
        return True

    def _start_body(self) -> None:
        """Enter the state after a request head."""
        self._in_head = False
        self._head_ended = True
        self.transport.client_may_send = True
        self._chunks = self._body_bytes = 0
        self._cancel_receive_timer()

    def _between_requests(self) -> bool:
        """Return whether every request so far has its complete response."""
        return self.cycle.response_complete

    def _start_receive_timer(self) -> None:
        """Limit the time to receive a head, or the rest of a body whose request has been answered."""
        self._receive_timer = self.loop.call_later(self.head_timeout_s, self._receive_timed_out)

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

    def _refuse_fields(self) -> None:
        what = "Request line and headers" if self._in_head else "Fields around the body"
        self._refuse(HEADERS_TOO_LARGE, f"{what} are over {_MAX_HEAD_BYTES} bytes.")

    def _refuse(self, row: Row, detail: str) -> None:
        """Refuse the head or body that is being received, and close the connection. Requests before it are answered
        first: the client would read a refusal as the response to one of them."""
        if self.transport.is_closing() or self._reading_ended:
            return
        in_body = not self._in_head
        # The handler of a request reports it. One in the pipeline has not started.
        handled = in_body and not self.pipeline
        self.on_refusal(row, None if handled else perf_counter() - self._head_started_at)
        scope = cast(Scope, (self.pipeline[0][0] if self.pipeline else self.cycle).scope) if in_body else None
        request_id = (scope and stated_request_id(scope)) or new_request_id()
        headers = {"x-request-id": request_id, **self._default_headers()}
        if handled or self._between_requests():
            self._cancel_receive_timer()
            self._in_head = False
            # After the start of its response, the client would read another response as part of it.
            response_started = handled and self.cycle.response_started
            self.transport.client_may_send = not response_started
            if not response_started:
                self.transport.write(problem_bytes(row, detail, request_id, headers, last=True))
            # The handler sees a disconnected client.
            self.cycle.disconnected = not self.cycle.response_complete
            self.cycle.message_event.set()
            self._disconnect.cancel()
            self.transport.close()
        else:
            if in_body:
                response = problem_response(
                    row, detail, request_id, {"x-request-id": request_id, "connection": "close"}
                )
                self.pipeline[0] = self.cycle, cast(Any, response)
            self._end_reading()
        log_refused_connection(self.client[0] if self.client else None, row, request_id)

    def _end_reading(self) -> None:
        """Parse nothing more, and close the connection once all requests so far are answered."""
        self._cancel_receive_timer()
        self._in_head = False
        self._reading_ended = True
        self.cycle.keep_alive = False
        self.transport.client_may_send = True
        self.flow.pause_reading()

    def _default_headers(self) -> dict[str, str]:
        """Return the headers that uvicorn adds to every response: the date."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.server_state.default_headers}


class _StopParsingError(Exception):
    """Raised in a parser callback to stop the parser. What has not been refused by then is refused as malformed."""
