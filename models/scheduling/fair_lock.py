"""A fair reader-writer lock: batches share the device, and the lens, which measures, has it exclusively."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class FairLock:
    """Serves waiters in order of arrival. `with lock` is exclusive; `with lock.shared()` is held together with others.

    threading.Lock is not fair: a thread that releases and acquires it in a loop can keep others out.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_ticket = 0
        self._serving = 0
        self._sharing = 0

    def __enter__(self) -> None:
        with self._changed:
            ticket = self._draw()
            self._changed.wait_for(lambda: self._serving == ticket and not self._sharing)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with others that share it. Waits for exclusive waiters that came before."""
        with self._changed:
            ticket = self._draw()
            self._changed.wait_for(lambda: self._serving == ticket)
            self._sharing += 1
            # The next waiter may share the lock at once. An exclusive one waits until nothing shares it.
            self._serving += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    def _draw(self) -> int:
        ticket = self._next_ticket
        self._next_ticket += 1
        return ticket
