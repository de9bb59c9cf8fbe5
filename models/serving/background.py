"""Work in a background thread, whose result an event loop or another thread waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundWork(Generic[T]):
    """Runs `work` in a daemon thread called `name`, which starts at once.

    If the result comes after the wait for it has timed out, the thread passes it to `discard`.
    """

    def __init__(
        self, work: Callable[[], T], name: str, *, discard: Callable[[T], None] = lambda _result: None
    ) -> None:
        self._outcome: Future[T] = Future()
        # The thread takes the work out of this list, so that nothing refers to it once its result is known.
        self._pending = [work]
        self._discard = discard
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    async def result(self, timeout_s: float | None = None) -> T:
        """Return the result, or raise what `work` raised. Raises TimeoutError after `timeout_s`; call once."""
        waiting = asyncio.wrap_future(self._outcome)
        await asyncio.wait({waiting}, timeout=timeout_s)
        if not waiting.done() and self._outcome.cancel():
            raise TimeoutError
        return await waiting

    def wait(self, timeout_s: float) -> T:
        """As `result`, but blocks."""
        try:
            return self._outcome.result(timeout_s)
        except TimeoutError:
            if self._outcome.cancel():
                raise
        # Either the work ended just now, or `work` itself raised TimeoutError.
        return self._outcome.result()

    def _run(self) -> None:
        try:
            result = self._pending.pop()()
        except BaseException as error:  # noqa: BLE001 - raised by `result` or `wait`
            # From here on the outcome cannot be cancelled. False: the wait has timed out.
            if self._outcome.set_running_or_notify_cancel():
                self._outcome.set_exception(error)
            return
        if self._outcome.set_running_or_notify_cancel():
            self._outcome.set_result(result)
        else:
            self._discard(result)
