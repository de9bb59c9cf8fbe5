"""Long loops on the event loop give way to its other tasks."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from models.interface import turns
from models.interface.turns import in_turns

pytestmark = pytest.mark.anyio


async def test_results_are_in_the_order_of_the_items() -> None:
    assert await in_turns(str, range(5)) == ["0", "1", "2", "3", "4"]
    assert await in_turns(str, []) == []


async def test_other_tasks_run_between_items_that_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_TURN_S", -1.0)
    happened: list[int] = []

    def make(item: int) -> int:
        happened.append(item)
        asyncio.get_running_loop().call_soon(happened.append, -item)
        return item

    await in_turns(make, [1, 2, 3])
    assert happened == [1, -1, 2, -2, 3, -3]


async def test_items_that_take_no_time_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "perf_counter", lambda: 0.0)
    happened: list[str] = []
    asyncio.get_running_loop().call_soon(happened.append, "other")

    await in_turns(lambda _: happened.append("made"), range(3))
    assert happened == ["made"] * 3


async def test_a_turn_lasts_five_milliseconds() -> None:
    laps: list[float] = []

    async def other() -> None:
        while True:
            laps.append(perf_counter())
            await asyncio.sleep(0)

    def make(_: int) -> None:
        until = perf_counter() + 0.002
        while perf_counter() < until:
            pass

    task = asyncio.create_task(other())
    await in_turns(make, range(60))
    task.cancel()
    # 120 ms of work: at least every fourth item, on a machine of any speed.
    assert len(laps) >= 15
