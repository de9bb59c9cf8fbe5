"""From the threads that decode and run forwards back to the event loop that waits for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class LoopMailbox:
    """Calls for one event loop, posted from any thread and made in order.

    Waking the loop costs a system call and a change of hands of the GIL. A batch of 32 posts 32 answers and wakes it
    once: whoever posts while the loop has been woken and has not yet looked, only adds to what it will find.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop make `call`, which must not raise. When the loop has closed nobody waits, and nothing is
        called."""
        self._calls.append(call)
        # Looked at after the append, and lowered before the first call is taken: a call is never left behind.
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
