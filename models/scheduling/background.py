"""Work in a thread that nobody has to wait for: not at the process's end, and no longer than somebody wants to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundWork(Generic[T]):
    """`work`, begun on construction in a daemon thread of that name. If whoever waited has given up, its result goes to
    `unwanted`, in that thread."""

    def __init__(
        self, work: Callable[[], T], name: str, *, unwanted: Callable[[T], None] = lambda _result: None
    ) -> None:
        self._outcome: Future[T] = Future()
        # Taken out by the thread: whoever hears of the result may count on its being done with what it worked on.
        self._to_do = [work]
        self._unwanted = unwanted
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def under_way(self) -> bool:
        """Whether the thread has still something to do."""
        return self._thread.is_alive()

    async def result(self, timeout_s: float | None = None) -> T:
        """The result, or what `work` raised. Raises TimeoutError after `timeout_s`: then nobody waits any more."""
        waiting = asyncio.wrap_future(self._outcome)
        await asyncio.wait({waiting}, timeout=timeout_s)
        if not waiting.done() and self._outcome.cancel():
            raise TimeoutError
        return await waiting

    def wait(self, timeout_s: float) -> T:
        """As `result`, for a thread that may block."""
        try:
            return self._outcome.result(timeout_s)
        except TimeoutError:
            if self._outcome.cancel():
                raise
        # It ended in that moment, or it was `work` that raised.
        return self._outcome.result()

    def _run(self) -> None:
        try:
            result = self._to_do.pop()()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            # From here on it cannot be cancelled. False: nobody waits.
            if self._outcome.set_running_or_notify_cancel():
                self._outcome.set_exception(error)
            return
        if self._outcome.set_running_or_notify_cancel():
            self._outcome.set_result(result)
        else:
            self._unwanted(result)
