"""Serve the Open Inference Protocol over gRPC, and gRPC's health checks, on the event loop of the HTTP server.

The modules grpc_server, grpc_health and grpc_messages alone import grpc, which is an optional dependency. Servers of
several HTTP workers share one port; the kernel spreads connections over them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
from fastapi import FastAPI, Request
from starlette.types import Scope

from app.api.content_encoding import coding_of, expand_coding
from app.api.contracts.grpc_health import HealthChecks
from app.api.contracts.grpc_limits import CallsOfClients, MessageReads
from app.api.contracts.grpc_messages import (
    INFERENCE,
    MAX_HEAD_BYTES,
    Method,
    client_of,
    methods_of,
    parse,
    split_request,
)
from app.api.contracts.oip_grpc import PROCEDURES, Call
from app.api.contracts.oip_models import OIP
from app.api.dependencies import Parts
from app.api.error_responses import record_problem
from app.api.off_loop import off_loop
from app.http.contract import contract_status
from app.http.disconnect import ClientDisconnect
from app.http.hosts import host_and_port
from app.http.problems import (
    INTERNAL_ERROR,
    BodyTooLargeError,
    FaultyImageError,
    RequestError,
    Row,
)
from app.observability.request_observer import RequestObserver
from app.observability.request_record import RequestRecord
from models.interface.errors import AtCapacityError, GradlessError, StartError

_log = logging.getLogger(__name__)
# It logs metadata that is not UTF-8, keys among them, with a traceback.
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)

_OK = 200

# By the status of the problem over HTTP.
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    412: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Clients limit the size of metadata to 8 KiB.
_MAX_MESSAGE_CHARACTERS = 2000
# Only clients of HTTP act on it.
_NOT_SENT = "x-content-type-options"

_MAX_STREAMS = 128
# Calls at once, and those of one client address: an unread body takes up to 64 KiB. With a long queue they are more.
_MAX_CALLS = 4096
_MAX_CALLS_OF_CLIENT = 1024
# Calls whose messages are being received, besides those whose images are admitted: a message is in memory before its
# size is known.
_MORE_READS = 64
# Of these, slow ones, if the memory for bodies holds fewer of the largest size.
_LEAST_SLOW_READS = 8
# An idle client connects again by itself.
_IDLE_MS = 300_000
# After so long without data, a client with unfinished calls is asked for a sign of life. Without one in
# GRADLESS_READ_TIMEOUT_S its connection is closed.
_KEEPALIVE_MS = 60_000

_RETRY_S = 1.0
# grpcio drops calls that have arrived, but that it has not passed on yet, when it stops. So it stops once no call has
# come for so long, and at the latest, if clients go on calling, after so long.
_QUIET_S = 0.1
_TAKE_S = 1.0

_INFER = "ModelInfer"


@dataclass(frozen=True, slots=True)
class _Route:
    """What the metrics need of a route."""

    path_format: str


@dataclass(frozen=True, slots=True)
class _Refusal:
    code: grpc.StatusCode
    message: str
    retry_after_s: int | None = None


class GrpcServer:
    """The gRPC server of an application.

    Its port is bound at once: connections wait there until the server is started. Raises StartError.
    """

    def __init__(self, app: FastAPI, observer: RequestObserver) -> None:
        self._app = app
        self._parts: Parts = app.state.parts
        self._observer = observer
        settings = self._parts.settings
        self._shares_port = bool(settings.http_workers)
        reads = settings.queue_capacity + _MORE_READS
        # All that are read or in the queue, behind a proxy.
        self._calls = CallsOfClients(max(_MAX_CALLS_OF_CLIENT, 2 * reads))
        self._max_calls = max(_MAX_CALLS, 8 * reads)
        self._health = HealthChecks(self._parts)
        slow_reads = settings.max_held_bytes // settings.max_request_bytes
        self._reads = MessageReads(reads, max(_LEAST_SLOW_READS, slow_reads))
        self._port = settings.grpc_port or 0
        self._serving: asyncio.Task[None] | None = None
        self._stopping = False
        self._calls_begun = 0
        self._server, self._address = self._bound()

    def _bound(self) -> tuple[Any, str]:
        """Return a server whose port is bound, and its address. Raises StartError."""
        settings = self._parts.settings
        server = grpc.aio.server(
            options=[
                # Without it another server could take the same port, and both would get connections.
                ("grpc.so_reuseport", int(self._shares_port)),
                ("grpc.max_receive_message_length", settings.max_request_bytes + MAX_HEAD_BYTES),
                # It would expand a message without a limit on all messages together.
                ("grpc.per_message_decompression", 0),
                ("grpc.max_send_message_length", -1),
                # It would enlarge the window of a body that no handler reads to 8 MiB.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", int(settings.read_timeout_s * 1000)),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                ("grpc.server_handshake_timeout_ms", int(settings.read_timeout_s * 1000)),
            ],
            maximum_concurrent_rpcs=self._max_calls,
        )
        unary = grpc.stream_unary_rpc_method_handler
        calls = {method.name: unary(self._handler(method)) for method in methods_of(INFERENCE)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(INFERENCE, calls), self._health.handlers())
        )

        try:
            port = server.add_insecure_port(host_and_port(settings.host, self._port))
        except RuntimeError:
            port = 0
        if not port:
            where = f"GRADLESS_HOST={settings.host}, GRADLESS_GRPC_PORT={settings.grpc_port}"
            raise StartError(
                f"gRPC cannot listen on {where}: the port is in use, or the address is not of this machine"
            )
        self._port = port
        return server, host_and_port(settings.host, port)

    async def start(self) -> None:
        """Answer calls."""
        await self._server.start()
        # The engine process tells of the port that workers share.
        level = logging.DEBUG if self._shares_port else logging.INFO
        _log.log(level, "listening for gRPC", extra={"address": self._address})
        self._serving = asyncio.create_task(self._serve_again())

    async def _serve_again(self) -> None:
        """Start another server whenever one has failed: a call whose path is not UTF-8 ends that of grpcio 1.85."""
        while not self._stopping:
            try:
                await self._server.wait_for_termination()
            except Exception as error:  # noqa: BLE001 - whatever ended it, clients need another
                _log.error("the gRPC server failed, another is started: %r", error)
                await self._server.stop(None)
                await self._start_again()

    async def _start_again(self) -> None:
        while not self._stopping:
            try:
                self._server, _ = self._bound()
            except StartError as error:
                _log.error("the gRPC server cannot be started again: %s", error)
                await asyncio.sleep(_RETRY_S)
            else:
                await self._server.start()
                return

    async def stop(self, grace_s: float) -> None:
        """Close the port once the calls that have arrived are taken, and answer these, for at most `grace_s` in all."""
        self._stopping = True
        until = perf_counter() + grace_s
        await self._take_arrived(min(_TAKE_S, grace_s / 2))
        await self._server.stop(until - perf_counter())

    async def _take_arrived(self, limit_s: float) -> None:
        until, begun = perf_counter() + limit_s, None
        while begun != self._calls_begun and perf_counter() < until:
            begun = self._calls_begun
            await asyncio.sleep(min(_QUIET_S, limit_s))

    def _handler(self, method: Method) -> Callable[[bytes, Any], Coroutine[Any, Any, bytes]]:
        async def call(messages: Any, context: Any) -> bytes:
            self._calls_begun += 1
            disconnect = ClientDisconnect()
            scope = self._scope(method, context, disconnect)
            record = self._observer.begin(scope)
            record.contract = OIP
            try:
                answer = await self._answer(method, Request(scope), record, context)
                trailers = self._trailers(scope, record)
                if isinstance(answer, bytes):
                    context.set_trailing_metadata(trailers)
                    return answer
                if answer.retry_after_s is not None:
                    trailers += (("grpc-retry-pushback-ms", str(answer.retry_after_s * 1000)),)
                await context.abort(answer.code, answer.message[:_MAX_MESSAGE_CHARACTERS], trailers)
                raise AssertionError("abort raises")  # pragma: no cover
            except asyncio.CancelledError:
                # The client has gone, or its deadline is over. Images in a forward see it as well.
                disconnect.cancel()
                raise
            finally:
                self._observer.end(scope, record)
                # grpcio keeps the exception of `abort`, and with it this frame, in the context.
                del messages, context, disconnect, record, scope

        return call

    async def _answer(self, method: Method, request: Request, record: RequestRecord, context: Any) -> bytes | _Refusal:
        """Return the response's message, or why there is none, which is recorded."""
        try:
            self._calls.begin(context)
            answer = await self._respond(method, request, record, context)
        except (FaultyImageError, GradlessError, RequestError) as error:
            row = record_problem(request, error)
            retry_after_s = error.retry_after_s if isinstance(error, AtCapacityError) else None
            return _refusal(record, row, str(error), retry_after_s)
        except Exception:  # noqa: BLE001 - the client gets no detail, and the log all
            _log.exception("a request failed", extra={"request_id": record.request_id})
            record.problem = INTERNAL_ERROR.slug
            return _refusal(record, INTERNAL_ERROR, "")
        record.status = _OK
        return answer

    async def _respond(self, method: Method, request: Request, record: RequestRecord, context: Any) -> bytes:
        procedure = PROCEDURES[method.name]
        if procedure.allowed is not None:
            await procedure.allowed(request)
        started_at = perf_counter()
        # Calls that need no key have an empty message.
        message = b"" if procedure.allowed is None else await self._read(record, context)
        raw_inputs: Sequence[memoryview] = ()
        rest = message
        if method.name == _INFER:
            split = split_request(message)
            record.reserve_held_bytes(split.parsed_bytes)
            raw_inputs, rest = split.raw_inputs, split.rest
        elif len(message) > MAX_HEAD_BYTES:
            raise BodyTooLargeError(MAX_HEAD_BYTES)
        parsed = await off_loop(len(rest), lambda: parse(method.request, rest))
        record.body_read = True
        record.read_seconds = perf_counter() - started_at
        fields = await procedure.answer(Call(request, parsed, raw_inputs))
        response: bytes = method.response(**fields).SerializeToString()
        return response

    async def _read(self, record: RequestRecord, context: Any) -> bytes | bytearray:
        """Return the message of a call, expanded. Raises SlowBodyError, InvalidInputError, AtCapacityError,
        BodyTooLargeError."""
        settings = self._parts.settings
        message = await self._reads.read(context, settings.read_timeout_s)
        record.reserve_body_bytes(len(message))
        coding = coding_of(message)
        if coding is None:
            return message
        return await expand_coding(record, message, coding, settings.max_request_bytes + MAX_HEAD_BYTES)

    def _scope(self, method: Method, context: Any, disconnect: ClientDisconnect) -> Scope:
        """Return the call as an HTTP request, which it is on the wire."""
        metadata = context.invocation_metadata() or ()
        headers = [
            (name.lower().encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
            for name, value in metadata
        ]
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": method.path,
            "raw_path": method.path.encode(),
            "query_string": b"",
            "headers": headers,
            "client": client_of(context.peer()),
            "app": self._app,
            "route": _Route(method.path),
        }
        disconnect.attach_to(scope)
        return scope

    def _trailers(self, scope: Scope, record: RequestRecord) -> tuple[tuple[str, str], ...]:
        headers = self._observer.headers(scope, record)
        return tuple((name, value) for name, value in headers.items() if name != _NOT_SENT)


def _refusal(record: RequestRecord, row: Row, message: str, retry_after_s: int | None = None) -> _Refusal:
    record.status = contract_status(row)
    # As over HTTP, an internal error tells no detail.
    public = row.title if row.status == INTERNAL_ERROR.status else message
    return _Refusal(_CODES.get(record.status, grpc.StatusCode.UNKNOWN), public, retry_after_s)
