"""Calls from decode and batch threads to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class LoopMailbox:
    """Calls for one event loop, posted from any thread and made in order.

    Waking the loop costs a system call and a switch of the GIL. While the loop is woken but has not run yet, further
    calls do not wake it again: a batch of 32 answers wakes it once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop make `call`, which must not raise. Does nothing if the loop is closed."""
        self._calls.append(call)
        # Read after the append; `_deliver` clears it before the first call. So no call is left behind.
        if not self._woken:
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._calls.clear()

    def _deliver(self) -> None:
        self._woken = False
        while self._calls:
            self._calls.popleft()()
