"""One connection of a caller: uvicorn's, with bounds on what it reads before an application hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from time import perf_counter
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.gathered_writes import GatheredWrites
from app.problems import CONTENT_TYPE, HEADERS_TOO_LARGE, MALFORMED_REQUEST, Row, SlowBodyError, problem, row_of
from app.request_log import refused

# Called with what a caller is told, and the seconds from the first byte of what has not become a request to there; None
# where it has, which tells of itself.
OnRefusal = Callable[[Row, float | None], None]

# As much as nginx and Apache take for a request line with its headers, and more than any client sends.
_MOST_HEAD_BYTES = 32 * 1024

# From the decision to stop until connections without a request are closed: what their callers had sent by then has
# arrived, and is answered.
_LAST_REQUESTS_S = 0.5


def bounded_connection(head_timeout_s: float, on_refusal: OnRefusal) -> type[HttpToolsProtocol]:
    """The protocol class of a server whose callers have `head_timeout_s` for request line and headers.

    uvicorn waits for them for ever and keeps any number: a connection that begins a request and does not end it
    would cost its memory and its file descriptor as long as its caller likes.
    """
    bounds = {"head_timeout_s": head_timeout_s, "on_refusal": staticmethod(on_refusal)}
    return type("BoundedConnection", (_BoundedConnection,), bounds)


class _BoundedConnection(HttpToolsProtocol):
    head_timeout_s: ClassVar[float]
    on_refusal: OnRefusal

    # Between the end of a request and the end of the next one's headers.
    _in_head = True
    _head_began_at = 0.0
    # Of a head that has not ended, counted in whole chunks.
    _head_bytes = 0
    _head_ended = False
    _too_slow: asyncio.TimerHandle | None = None
    _ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(GatheredWrites(transport, self.loop))  # type: ignore[arg-type]  # it is one by its methods
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_of_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_in_head, self._head_ended = self._in_head, False
        if began_in_head and self._too_slow is None:
            # The next request of a connection that lives on; between requests uvicorn's own timer runs.
            self._expect_head()
        if began_in_head and not self._head_bytes:
            self._head_began_at = perf_counter()
        # What the parser has of an unfinished head it keeps, and tells of it only at the end of each header.
        self._head_bytes += len(data)
        super().data_received(data)
        if not began_in_head or self._head_ended:
            self._head_bytes = 0
        elif self._in_head and self._head_bytes > _MOST_HEAD_BYTES:
            self._refuse(HEADERS_TOO_LARGE, f"Request line and headers are over {_MOST_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_ended = True
        self._end_of_head()
        super().on_headers_complete()
        if self._ending and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._in_head = True
        # The next may come in the same chunk.
        self._head_began_at = perf_counter()
        super().on_message_complete()

    def shutdown(self) -> None:
        """End after the request under way. Without one, wait for any that is on its way: uvicorn closes at once, and
        what a caller sent a moment before, on a connection that lives on, would be lost unread."""
        if not self._ending and self._between_requests():
            self.loop.call_later(_LAST_REQUESTS_S, self._end)
        else:
            super().shutdown()
        self._ending = True

    def send_400_response(self, msg: str) -> None:
        self._refuse(MALFORMED_REQUEST, msg)

    def _between_requests(self) -> bool:
        # None before the first request, whatever uvicorn's annotation says.
        return bool(getattr(self.cycle, "response_complete", True))

    def _end(self) -> None:
        if self._between_requests() and not self.transport.is_closing():
            self.transport.close()

    def _expect_head(self) -> None:
        self._too_slow = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _end_of_head(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None

    def _give_up(self) -> None:
        if self._head_bytes:
            self._refuse(row_of(SlowBodyError(0)), f"The headers had not arrived after {self.head_timeout_s:g} s.")
        else:
            # It has asked for nothing: there is nothing to answer.
            self.transport.close()

    def _refuse(self, row: Row, detail: str) -> None:
        self._end_of_head()
        self.on_refusal(row, perf_counter() - self._head_began_at if self._in_head else None)
        self._in_head = False
        refused(self.client[0] if self.client else None, row)
        if not self.transport.is_closing():
            self.transport.write(_answer(row, detail))
            self.transport.close()


def _answer(row: Row, detail: str) -> bytes:
    body = problem(row, detail, None).model_dump_json(exclude_none=True).encode()
    head: dict[str, Any] = {"content-type": CONTENT_TYPE, "content-length": len(body), "connection": "close"}
    lines = [f"HTTP/1.1 {row.status} {HTTPStatus(row.status).phrase}", *(f"{name}: {head[name]}" for name in head)]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
