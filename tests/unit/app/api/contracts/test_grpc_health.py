"""gRPC's health checks cost little, whoever asks: they need no key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, Never

import pytest

grpc = pytest.importorskip("grpc")

from app.api.contracts import grpc_health  # noqa: E402 - needs grpc
from app.api.contracts.grpc_health import HealthChecks  # noqa: E402
from app.api.contracts.grpc_limits import CallsOfClients  # noqa: E402
from app.api.contracts.grpc_messages import HEALTH, methods_of  # noqa: E402

pytestmark = pytest.mark.anyio

_REQUEST = methods_of(HEALTH)[0].request
_SERVING = 1


class AbortedError(Exception):
    """A call that was ended with a code."""


class Call:
    """The context of a call whose message is `message`; None comes never. `end` is what grpcio does at its end."""

    def __init__(self, message: bytes | None = b"", address: str = "192.0.2.1") -> None:
        self._message = message
        self._address = address
        self._callbacks: list[Callable[[Any], None]] = []

    def peer(self) -> str:
        return f"ipv4:{self._address}:4711"

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)

    async def read(self) -> bytes:
        if self._message is None:
            await asyncio.Event().wait()
        assert self._message is not None
        return self._message

    async def abort(self, code: Any, _message: str) -> Never:
        raise AbortedError(code.name)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> HealthChecks:
    monkeypatch.setattr(grpc_health, "_READ_TIMEOUT_S", 0.05)
    parts: Any = SimpleNamespace(ready=True, runtime=SimpleNamespace(ready=True, draining=False))
    return HealthChecks(parts, CallsOfClients(100))


def _check(checks: HealthChecks, call: Call) -> Any:
    return checks.handlers().service(SimpleNamespace(method=f"/{HEALTH}/Check")).stream_unary(None, call)


def _watch(checks: HealthChecks, call: Call | None = None) -> AsyncIterator[Any]:
    watched: AsyncIterator[Any] = (
        checks.handlers().service(SimpleNamespace(method=f"/{HEALTH}/Watch")).stream_stream(None, call or Call())
    )
    return watched


async def test_messages_that_never_come_neither_last_nor_keep_others_from_an_answer(checks: HealthChecks) -> None:
    slow = [asyncio.ensure_future(_check(checks, Call(None))) for _ in range(8)]
    await asyncio.sleep(0)

    assert (await _check(checks, Call(None))).status == _SERVING
    assert {str(error) for error in await asyncio.gather(*slow, return_exceptions=True)} == {"INVALID_ARGUMENT"}
    with pytest.raises(AbortedError, match="NOT_FOUND"):
        await _check(checks, Call(_REQUEST(service="elsewhere").SerializeToString()))


async def test_streams_of_health_have_a_limit(checks: HealthChecks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_health, "_MAX_WATCHES", 1)
    first, second, third = (_watch(checks) for _ in range(3))

    assert (await anext(first)).status == _SERVING
    with pytest.raises(AbortedError, match="RESOURCE_EXHAUSTED"):
        await anext(second)
    await first.aclose()  # type: ignore[attr-defined]
    assert (await anext(third)).status == _SERVING


async def test_calls_that_a_client_leaves_unfinished_keep_no_other_client_out(checks: HealthChecks) -> None:
    unfinished = [Call() for _ in range(100)]
    for call in unfinished:
        await _check(checks, call)

    with pytest.raises(AbortedError, match="RESOURCE_EXHAUSTED"):
        await _check(checks, Call())
    assert (await _check(checks, Call(address="192.0.2.2"))).status == _SERVING
    unfinished[0].end()
    assert (await _check(checks, Call())).status == _SERVING


async def test_streams_of_one_client_keep_no_other_client_out(checks: HealthChecks) -> None:
    streams = [_watch(checks) for _ in range(65)]
    for stream in streams[:64]:
        assert (await anext(stream)).status == _SERVING

    with pytest.raises(AbortedError, match="RESOURCE_EXHAUSTED"):
        await anext(streams[64])
    assert (await anext(_watch(checks, Call(address="192.0.2.2")))).status == _SERVING
    for stream in streams[:64]:
        await stream.aclose()  # type: ignore[attr-defined]
