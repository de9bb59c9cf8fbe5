"""Results of background work are returned or discarded, never both; calls reach the event loop in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from models.scheduling.threads import BackgroundWork, LoopMailbox

_PATIENCE_S = 30

pytestmark = pytest.mark.anyio


async def _waited_for(work: BackgroundWork[Any], timeout_s: float, blocking: bool) -> Any:  # noqa: FBT001 - a parameter
    return await asyncio.to_thread(work.wait, timeout_s) if blocking else await work.result(timeout_s)


@pytest.fixture(params=[False, True], ids=["on the loop", "in a thread"])
def blocking(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_the_result_is_returned_and_the_error_is_raised(blocking: bool) -> None:  # noqa: FBT001
    def fails() -> None:
        raise TimeoutError("the disk's")

    assert await _waited_for(BackgroundWork(lambda: 3, "work"), _PATIENCE_S, blocking) == 3
    with pytest.raises(TimeoutError, match="the disk's"):
        await _waited_for(BackgroundWork(fails, "work"), _PATIENCE_S, blocking)


async def test_a_result_after_the_timeout_is_discarded(blocking: bool) -> None:  # noqa: FBT001
    hold, cleared = threading.Event(), threading.Semaphore(0)
    results: list[str] = []

    def clear(result: str) -> None:
        results.append(result)
        cleared.release()

    def work() -> str:
        assert hold.wait(_PATIENCE_S)
        return "late"

    begun = BackgroundWork(work, "work", discard=clear)
    with pytest.raises(TimeoutError):
        await _waited_for(begun, 0.01, blocking)
    assert begun.running
    hold.set()
    assert await asyncio.to_thread(cleared.acquire, timeout=_PATIENCE_S)
    assert results == ["late"]


async def test_an_error_after_the_timeout_ends_the_thread(blocking: bool) -> None:  # noqa: FBT001
    hold = threading.Event()

    def fails() -> None:
        assert hold.wait(_PATIENCE_S)
        raise LookupError

    begun = BackgroundWork(fails, "work")
    with pytest.raises(TimeoutError):
        await _waited_for(begun, 0.01, blocking)
    hold.set()
    begun._thread.join(_PATIENCE_S)  # noqa: SLF001
    assert not begun.running


async def test_a_result_at_the_moment_of_the_timeout_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
    blocking: bool,  # noqa: FBT001
) -> None:
    hold, cleared = threading.Event(), threading.Event()
    cancel: Callable[[Future[Any]], bool] = Future.cancel

    def work() -> str:
        assert hold.wait(_PATIENCE_S)
        return "in time"

    begun = BackgroundWork(work, "work", discard=lambda _: cleared.set())

    def after_the_end(outcome: Future[Any]) -> bool:
        hold.set()
        begun._thread.join(_PATIENCE_S)  # noqa: SLF001
        return cancel(outcome)

    monkeypatch.setattr(begun._outcome, "cancel", lambda: after_the_end(begun._outcome))  # noqa: SLF001
    assert await _waited_for(begun, 0.01, blocking) == "in time"
    assert not cleared.is_set()


_POSTS = 2000


class _CountedLoop:
    """Passes on, and counts how often it is woken."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.wakes = 0

    def call_soon_threadsafe(self, call: Callable[[], Any]) -> asyncio.Handle:
        self.wakes += 1
        return self._loop.call_soon_threadsafe(call)


async def test_calls_are_made_on_the_loop_in_the_order_in_which_one_thread_posted_them() -> None:
    loop = asyncio.get_running_loop()
    inbox, made, done = LoopMailbox(loop), list[int](), asyncio.Event()

    def post() -> None:
        for number in range(_POSTS):
            inbox.post(lambda number=number: made.append(number))  # type: ignore[misc]
        inbox.post(done.set)

    await asyncio.to_thread(post)
    await done.wait()
    assert made == list(range(_POSTS))


async def test_no_call_is_lost_if_several_threads_post_while_the_loop_delivers() -> None:
    inbox, made, done = LoopMailbox(asyncio.get_running_loop()), list[int](), asyncio.Event()

    def make(number: int) -> None:
        made.append(number)
        if len(made) == 4 * _POSTS:
            done.set()

    def post() -> None:
        for number in range(_POSTS):
            inbox.post(lambda: make(number))  # noqa: B023 - only that it is made counts

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(30):
        await done.wait()
    for thread in threads:
        thread.join()


async def test_several_posts_wake_the_loop_once() -> None:
    counted = _CountedLoop(asyncio.get_running_loop())
    inbox, made = LoopMailbox(counted), list[int]()  # type: ignore[arg-type]
    for number in range(32):
        inbox.post(lambda number=number: made.append(number))  # type: ignore[misc]
    assert (counted.wakes, made) == (1, [])
    await asyncio.sleep(0)
    assert made == list(range(32))
    inbox.post(lambda: None)
    assert counted.wakes == 2


async def test_a_post_to_a_closed_loop_does_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    made: list[int] = []
    LoopMailbox(loop).post(lambda: made.append(1))
    assert made == []
