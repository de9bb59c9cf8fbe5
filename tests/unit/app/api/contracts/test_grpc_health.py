"""gRPC's health checks cost little, whoever asks: they need no key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Never

import pytest

grpc = pytest.importorskip("grpc")

from app.api.contracts import grpc_health  # noqa: E402 - needs grpc
from app.api.contracts.grpc_health import HealthChecks  # noqa: E402
from app.api.contracts.grpc_messages import HEALTH, methods_of  # noqa: E402

pytestmark = pytest.mark.anyio

_REQUEST = methods_of(HEALTH)[0].request
_SERVING = 1


class AbortedError(Exception):
    """A call that was ended with a code."""


class Call:
    """The context of a call whose message is `message`; None comes never."""

    def __init__(self, message: bytes | None = b"") -> None:
        self._message = message

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
    return HealthChecks(parts)


def _check(checks: HealthChecks, call: Call) -> Any:
    return checks.handlers().service(SimpleNamespace(method=f"/{HEALTH}/Check")).stream_unary(None, call)


def _watch(checks: HealthChecks) -> AsyncIterator[Any]:
    watched: AsyncIterator[Any] = (
        checks.handlers().service(SimpleNamespace(method=f"/{HEALTH}/Watch")).stream_stream(None, Call())
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
