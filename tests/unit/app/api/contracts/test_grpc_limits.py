"""Messages of gRPC that do not come, or not to their end, keep no others out and have a limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("grpc")

from app.api.contracts import grpc_limits
from app.api.contracts.grpc_limits import MessageReads
from app.http.problems import SlowBodyError
from models.interface.errors import TooManyCallsError

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30


class _Call:
    """The context of a call whose message comes when it is set."""

    def __init__(self, peer: str = "ipv4:192.0.2.1:4711") -> None:
        self.peer = lambda: peer
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
    reads = MessageReads(20, 4)
    calls = [_Call() for _ in range(5)]
    tasks = [asyncio.create_task(reads.read(call, _PATIENCE_S)) for call in calls]
    # One client has half of the places.
    await _ended(*tasks[2:])
    others = [_Call("ipv4:192.0.2.2:4711"), _Call("ipv4:192.0.2.3:4711"), _Call("ipv4:192.0.2.4:4711")]
    further = [asyncio.create_task(reads.read(call, _PATIENCE_S)) for call in others]
    await _ended(further[2])

    assert {str(task.exception()) for task in (*tasks[2:], further[2])} == {
        "4 messages that take over a second to arrive are being received; try again in 1 s."
    }
    # Messages that come at once are read beside them.
    quick = _Call()
    quick.message.set_result(b"quick")
    assert await reads.read(quick, _PATIENCE_S) == b"quick"
    for call in (*calls[:2], *others[:2]):
        call.message.set_result(b"slow")
    assert await asyncio.gather(*tasks[:2], *further[:2]) == [b"slow"] * 4
    # Their places are free again.
    late = _Call()
    reading = asyncio.create_task(reads.read(late, _PATIENCE_S))
    await asyncio.sleep(0.05)
    late.message.set_result(b"late")
    assert await reading == b"late"


async def test_one_client_is_read_from_in_half_of_the_places_and_all_clients_in_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc_limits, "_QUICK_READ_S", _PATIENCE_S)
    reads = MessageReads(4, 4)

    async def begin(peer: str) -> asyncio.Task[bytes]:
        reading = asyncio.create_task(reads.read(_Call(peer), _PATIENCE_S))
        await asyncio.sleep(0)
        return reading

    # Addresses of one network of IPv6.
    first = [await begin(f"ipv6:[2001:db8::{number}]:4711") for number in range(3)]
    second = [await begin("ipv4:192.0.2.1:4711") for _ in range(2)]
    third = await begin("ipv4:192.0.2.2:4711")
    assert isinstance(first[2].exception(), TooManyCallsError)
    assert isinstance(third.exception(), TooManyCallsError)
    for reading in (*first[:2], *second):
        reading.cancel()
    await asyncio.wait({*first[:2], *second})

    last: Any = _Call()
    last.message.set_result(b"last")
    assert await reads.read(last, _PATIENCE_S) == b"last"


async def test_a_slow_message_that_never_ends_is_a_slow_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_limits, "_QUICK_READ_S", 0.01)
    with pytest.raises(SlowBodyError):
        await MessageReads(1, 1).read(_Call(), 0.05)
