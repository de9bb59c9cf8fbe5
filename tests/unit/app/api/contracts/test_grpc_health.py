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

    def __init__(self, message: bytes | None = b"", address: str = "192.0.2.1") -> None:
        self._message = message
        self._address = address

    def peer(self) -> str:
        return f"ipv4:{self._address}:4711"

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


async def test_checks_that_a_client_leaves_unfinished_keep_no_other_client_out(
    checks: HealthChecks,
) -> None:
    read = asyncio.Event()

    async def unfinished() -> None:
        """A call whose answer the client does not read yet: grpcio sends it in the task of the handler."""
        await _check(checks, Call())
        await read.wait()

    calls = [asyncio.create_task(unfinished()) for _ in range(256)]
    await asyncio.sleep(0)

    with pytest.raises(AbortedError, match="RESOURCE_EXHAUSTED"):
        await _check(checks, Call())
    assert (await _check(checks, Call(address="192.0.2.2"))).status == _SERVING
    read.set()
    await asyncio.gather(*calls)
    assert (await asyncio.create_task(_check(checks, Call()))).status == _SERVING


async def test_streams_of_one_client_keep_no_other_client_out(checks: HealthChecks) -> None:
    async def first_of(call: Call) -> int:
        stream = _watch(checks, call)
        try:
            status: int = (await anext(stream)).status
            await ended.wait()
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
        return status

    ended = asyncio.Event()
    tasks = [asyncio.create_task(first_of(Call())) for _ in range(257)]
    other = asyncio.create_task(first_of(Call(address="192.0.2.2")))
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert [str(each.exception()) for each in done] == ["RESOURCE_EXHAUSTED"]
    ended.set()
    assert await other == _SERVING
    assert await asyncio.gather(*(set(tasks) - done)) == [_SERVING] * 256
    assert await asyncio.create_task(first_of(Call())) == _SERVING
