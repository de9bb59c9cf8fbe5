"""Serve the Open Inference Protocol over gRPC, and gRPC's health checks, on the event loop of the HTTP server.

The only module that imports grpc, which is an optional dependency. Servers of several HTTP workers share one port; the
kernel spreads connections over them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from fastapi import FastAPI, Request
from starlette.types import Scope

from app.api.contracts.grpc_messages import HEALTH, INFERENCE, Method, methods_of, parse, split_request
from app.api.contracts.oip_grpc import PROCEDURES, Call
from app.api.contracts.oip_models import OIP
from app.api.dependencies import Parts
from app.api.error_responses import record_problem
from app.api.off_loop import off_loop
from app.http.contract import contract_status
from app.http.disconnect import ClientDisconnect
from app.http.problems import INTERNAL_ERROR, BodyTooLargeError, FaultyImageError, RequestError, Row
from app.observability.request_observer import RequestObserver
from app.observability.request_record import RequestRecord
from models.interface.errors import AtCapacityError, GradlessError, StartError

_log = logging.getLogger(__name__)

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

# What a message has besides images.
_HEAD_BYTES = 64 * 1024
_MAX_STREAMS = 128
# Calls besides those whose images are admitted: health checks, and calls that are being refused.
_MORE_CALLS = 64

_HEALTH_PERIOD_S = 0.5

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
        self._server = grpc.aio.server(
            options=[
                # Without it another server could take the same port, and both would get connections.
                ("grpc.so_reuseport", int(self._shares_port)),
                ("grpc.max_receive_message_length", settings.max_request_bytes + _HEAD_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
            ],
            # Their messages are in memory before they can be refused.
            maximum_concurrent_rpcs=settings.queue_capacity + _MORE_CALLS,
        )
        unary = grpc.unary_unary_rpc_method_handler
        calls = {method.name: unary(self._handler(method)) for method in methods_of(INFERENCE)}
        [check, watch] = methods_of(HEALTH)
        self._health_response = check.response
        probes = {
            check.name: unary(self._check, check.request.FromString, check.response.SerializeToString),
            watch.name: grpc.unary_stream_rpc_method_handler(
                self._watch, watch.request.FromString, watch.response.SerializeToString
            ),
        }
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(INFERENCE, calls),
                grpc.method_handlers_generic_handler(HEALTH, probes),
            )
        )

        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError:
            port = 0
        if not port:
            where = f"GRADLESS_HOST={settings.host}, GRADLESS_GRPC_PORT={settings.grpc_port}"
            raise StartError(
                f"gRPC cannot listen on {where}: the port is in use, or the address is not of this machine"
            )
        self._address = f"{host}:{port}"

    async def start(self) -> None:
        """Answer calls."""
        await self._server.start()
        # The engine process tells of the port that workers share.
        level = logging.DEBUG if self._shares_port else logging.INFO
        _log.log(level, "listening for gRPC", extra={"address": self._address})

    async def stop(self, grace_s: float) -> None:
        """Close the port, and answer the accepted calls for at most `grace_s`."""
        await self._server.stop(grace_s)

    def _handler(self, method: Method) -> Callable[[bytes, Any], Coroutine[Any, Any, bytes]]:
        async def call(message: bytes, context: Any) -> bytes:
            disconnect = ClientDisconnect()
            scope = self._scope(method, context, disconnect)
            record = self._observer.begin(scope)
            record.contract = OIP
            try:
                answer = await self._answer(method, Request(scope), record, message)
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

        return call

    async def _answer(
        self, method: Method, request: Request, record: RequestRecord, message: bytes
    ) -> bytes | _Refusal:
        """Return the response's message, or why there is none, which is recorded."""
        try:
            answer = await self._respond(method, request, record, message)
        except (FaultyImageError, GradlessError, RequestError) as error:
            row = record_problem(request, self._parts.metrics, error)
            retry_after_s = error.retry_after_s if isinstance(error, AtCapacityError) else None
            return _refusal(record, row, str(error), retry_after_s)
        except Exception:  # noqa: BLE001 - the client gets no detail, and the log all
            _log.exception("a request failed", extra={"request_id": record.request_id})
            record.problem = INTERNAL_ERROR.slug
            return _refusal(record, INTERNAL_ERROR, "")
        record.status = _OK
        return answer

    async def _respond(self, method: Method, request: Request, record: RequestRecord, message: bytes) -> bytes:
        procedure = PROCEDURES[method.name]
        if procedure.allowed is not None:
            await procedure.allowed(request)
        started_at = perf_counter()
        record.reserve_body_bytes(len(message))
        raw_inputs: Sequence[memoryview] = ()
        rest = message
        if method.name == _INFER:
            split = split_request(message)
            record.reserve_held_bytes(split.parsed_bytes)
            raw_inputs, rest = split.raw_inputs, split.rest
        elif len(message) > _HEAD_BYTES:
            raise BodyTooLargeError(_HEAD_BYTES)
        parsed = await off_loop(len(rest), lambda: parse(method.request, rest))
        record.body_read = True
        record.read_seconds = perf_counter() - started_at
        fields = await procedure.answer(Call(request, parsed, raw_inputs))
        response: bytes = method.response(**fields).SerializeToString()
        return response

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

    async def _check(self, message: Any, context: Any) -> Any:
        status = self._health(message.service)
        if status == "SERVICE_UNKNOWN":
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        return self._health_response(status=status)

    async def _watch(self, message: Any, _context: Any) -> AsyncIterator[Any]:
        """Yield the health whenever it changes. It ends with the service."""
        sent = None
        while True:
            status = self._health(message.service)
            if status != sent:
                yield self._health_response(status=status)
                sent = status
            runtime = self._parts.runtime
            if runtime is None or runtime.draining:
                return
            await asyncio.sleep(_HEALTH_PERIOD_S)

    def _health(self, service: str) -> str:
        if service not in {"", INFERENCE}:
            return "SERVICE_UNKNOWN"
        runtime = self._parts.runtime
        return "SERVING" if runtime is not None and runtime.ready else "NOT_SERVING"


def _refusal(record: RequestRecord, row: Row, message: str, retry_after_s: int | None = None) -> _Refusal:
    record.status = contract_status(row)
    # As over HTTP, an internal error tells no detail.
    public = row.title if row.status == INTERNAL_ERROR.status else message
    return _Refusal(_CODES.get(record.status, grpc.StatusCode.UNKNOWN), public, retry_after_s)


def client_of(peer: str) -> tuple[str, int] | None:
    """Return address and port of gRPC's name of a client, such as `ipv6:[::1]:4711`; None if it has none."""
    family, _, place = unquote(peer).partition(":")
    host, _, port = place.rpartition(":")
    if family not in {"ipv4", "ipv6"} or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)
