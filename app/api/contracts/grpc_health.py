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

    async def _check(self, _: Any, context: Any) -> Any:
        await _begin(self._checks, context)
        status = self._health(await self._service(context))
        if status == "SERVICE_UNKNOWN":
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        return _CHECK.response(status=status)

    async def _watch(self, _: Any, context: Any) -> AsyncIterator[Any]:
        if self._watches >= _MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MAX_WATCHES} streams watch the health.")
        await _begin(self._watching, context)
        self._watches += 1
        try:
            service, sent = await self._service(context), None
            while True:
                status = self._health(service)
                if status != sent:
                    yield _CHECK.response(status=status)
                    sent = status
                runtime = self._parts.runtime
                if runtime is None or runtime.draining:
                    return
                await asyncio.sleep(_PERIOD_S)
        finally:
            self._watches -= 1

    async def _service(self, context: Any) -> str:
        """Return the service that a call names."""
        if self._reads >= _MAX_READS:
            return _SERVER
        self._reads += 1
        try:
            message = await received(context, _READ_TIMEOUT_S)
            service: str = parse(_CHECK.request, message[:MAX_HEAD_BYTES]).service
        except (SlowBodyError, InvalidInputError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self._reads -= 1
        return service

    def _health(self, service: str) -> str:
        if service not in {_SERVER, INFERENCE}:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._parts.ready else "NOT_SERVING"


async def _begin(calls: CallsOfClients, context: Any) -> None:
    try:
        calls.begin(context)
    except TooManyCallsError as error:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
