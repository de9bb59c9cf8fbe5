"""gRPC's health checks: the service grpc.health.v1.Health, which needs no key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from app.api.contracts.grpc_limits import CallsOfClients
from app.api.contracts.grpc_messages import HEALTH, INFERENCE, MAX_HEAD_BYTES, methods_of, parse, received
from app.api.dependencies import Parts
from app.http.problems import InvalidInputError, SlowBodyError
from models.interface.errors import TooManyCallsError

_PERIOD_S = 0.5
# Each stream looks at the health once in _PERIOD_S.
_MAX_WATCHES = 1024
_MAX_WATCHES_OF_CLIENT = 256
_MAX_CHECKS_OF_CLIENT = 256
# A message is in memory before its size is known, and its client needs no key. The messages of further checks are not
# read: all services have the health of the server.
_MAX_READS = 8
_READ_TIMEOUT_S = 2.0
_SERVER = ""

[_CHECK, _WATCH] = methods_of(HEALTH)


class HealthChecks:
    """Answers Check with the health, and Watch whenever it changes. Both end with the service."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        # Apart from other calls: a proxy checks the health from the address of its traffic.
        self._checks = CallsOfClients(_MAX_CHECKS_OF_CLIENT)
        self._watching = CallsOfClients(_MAX_WATCHES_OF_CLIENT)
        self._reads = self._watches = 0

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers of the service. They read the message of a call themselves."""
        write = _CHECK.response.SerializeToString
        check = grpc.stream_unary_rpc_method_handler(self._check, None, write)
        watch = grpc.stream_stream_rpc_method_handler(self._watch, None, write)
        return grpc.method_handlers_generic_handler(HEALTH, {_CHECK.name: check, _WATCH.name: watch})

    async def _check(self, messages: Any, context: Any) -> Any:
        try:
            asked = await self._asked(self._checks, context)
            if isinstance(asked, tuple):
                return await context.abort(*asked)
            status = self._health(asked)
            if status == "SERVICE_UNKNOWN":
                await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
            return _CHECK.response(status=status)
        finally:
            # grpcio keeps the exception of `abort`, and with it this frame, in the context.
            del messages, context

    async def _watch(self, messages: Any, context: Any) -> AsyncIterator[Any]:
        self._watches += 1
        try:
            if self._watches > _MAX_WATCHES:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MAX_WATCHES} streams watch the health.")
            asked, sent = await self._asked(self._watching, context), None
            if isinstance(asked, tuple):
                await context.abort(*asked)
                return
            while True:
                status = self._health(asked)
                if status != sent:
                    yield _CHECK.response(status=status)
                    sent = status
                runtime = self._parts.runtime
                if runtime is None or runtime.draining:
                    return
                await asyncio.sleep(_PERIOD_S)
        finally:
            self._watches -= 1
            del messages, context

    async def _asked(self, calls: CallsOfClients, context: Any) -> str | tuple[grpc.StatusCode, str]:
        """Count a call, and return the service that it names, or the code and the reason of its refusal."""
        try:
            calls.begin(context)
            return await self._service(context)
        except TooManyCallsError as error:
            return grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        except (SlowBodyError, InvalidInputError) as error:
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)

    async def _service(self, context: Any) -> str:
        if self._reads >= _MAX_READS:
            return _SERVER
        self._reads += 1
        try:
            message = await received(context, _READ_TIMEOUT_S)
            service: str = parse(_CHECK.request, message[:MAX_HEAD_BYTES]).service
        finally:
            self._reads -= 1
        return service

    def _health(self, service: str) -> str:
        if service not in {_SERVER, INFERENCE}:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._parts.ready else "NOT_SERVING"
