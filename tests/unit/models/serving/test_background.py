"""Results of background work are returned or discarded, never both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from models.serving.background import BackgroundWork

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
