"""gRPC calls with the requests and answers of reliability.wire, so that one client sends all protocols."""

from __future__ import annotations

import asyncio
from typing import Self

import grpc

from reliability.wire import ANSWER_TIMEOUT_S, Address, Answer, Request

_OK, _BROKEN = 200, 500
# As the server counts them. RESOURCE_EXHAUSTED is 429 if it says when to come again, and else 413.
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 412,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_TOO_MANY = 429
PUSHBACK = b"grpc-retry-pushback-ms"
# Trailers of every answer of the application.
_ANSWERED = "x-request-id"


class GrpcConnection:
    """A connection of its own, for several calls at once. The `wire` of a request is its message, `route` its method;
    the `head` of an answer has the trailers, its body the message or the error's text."""

    def __init__(self, address: Address) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        self._channel = grpc.insecure_channel(f"{address.host}:{address.port}", options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._channel.close()

    async def close(self) -> None:
        """Do nothing: gRPC connects again by itself, and other calls are on this connection."""

    async def answer_to(self, request: Request) -> Answer:
        """Return the answer to a request. Raises ConnectionError if it does not come from the application."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        method = self._channel.unary_unary(request.route)
        call = method.future(request.wire, timeout=ANSWER_TIMEOUT_S, metadata=request.metadata)
        call.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
        await ended.wait()
        trailers = dict(call.trailing_metadata() or ())
        head = "".join(f"\r\n{name}: {value}" for name, value in trailers.items()).encode()
        code = call.code()
        if code is grpc.StatusCode.OK:
            return Answer(_OK, head, call.result())
        status = _TOO_MANY if PUSHBACK.decode() in trailers else _STATUSES.get(code, _BROKEN)
        if _ANSWERED not in trailers and status >= _BROKEN:
            raise ConnectionError(f"{code.name}: {call.details()}")
        return Answer(status, head, call.details().encode())
