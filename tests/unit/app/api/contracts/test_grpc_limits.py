"""Messages of gRPC that do not come, or not to their end, keep no others out and have a limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("grpc")

from app.api.contracts import grpc_limits
from app.api.contracts.grpc_limits import MessageReads
from app.http.problems import SlowBodyError
from models.interface.errors import BodyMemoryFullError

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30


class _Call:
    """The context of a call whose message comes when it is set."""

    def __init__(self) -> None:
        self.message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read(self) -> bytes:
        return await self.message


async def _ended(*reads: asyncio.Task[bytes]) -> None:
    done, _ = await asyncio.wait(reads, timeout=_PATIENCE_S)
    assert len(done) == len(reads)


async def test_of_messages_that_take_long_a_few_are_waited_for_and_the_others_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc_limits, "_QUICK_READ_S", 0.01)
    reads = MessageReads(10, 2, 1000)
    calls = [_Call() for _ in range(5)]
    tasks = [asyncio.create_task(reads.read(call, _PATIENCE_S)) for call in calls]
    await _ended(*tasks[2:])

    assert all(isinstance(task.exception(), BodyMemoryFullError) for task in tasks[2:])
    # Messages that come at once are read beside them.
    quick = _Call()
    quick.message.set_result(b"quick")
    assert await reads.read(quick, _PATIENCE_S) == b"quick"
    for call in calls[:2]:
        call.message.set_result(b"slow")
    assert await asyncio.gather(*tasks[:2]) == [b"slow", b"slow"]
    # Their places are free again.
    late = _Call()
    reading = asyncio.create_task(reads.read(late, _PATIENCE_S))
    await asyncio.sleep(0.05)
    late.message.set_result(b"late")
    assert await reading == b"late"


async def test_further_messages_are_refused_at_once() -> None:
    reads = MessageReads(1, 1, 1000)
    first: Any = _Call()
    reading = asyncio.create_task(reads.read(first, _PATIENCE_S))
    await asyncio.sleep(0)

    with pytest.raises(BodyMemoryFullError):
        await reads.read(_Call(), _PATIENCE_S)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    first = _Call()
    first.message.set_result(b"next")
    assert await reads.read(first, _PATIENCE_S) == b"next"


async def test_a_slow_message_that_never_ends_is_a_slow_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_limits, "_QUICK_READ_S", 0.01)
    with pytest.raises(SlowBodyError):
        await MessageReads(1, 1, 1000).read(_Call(), 0.05)
