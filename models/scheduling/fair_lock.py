"""A lock that serves its waiters in order of arrival: serving and the lens take turns on a device. Batches of serving
share a turn; the lens, which measures, is alone in its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class FairLock:
    """First come, first served: `with lock` alone, `with lock.shared()` beside others who share and came before anybody
    who does not.

    threading.Lock makes no such promise: a loop that lets go and takes again at once can keep others out.
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
        """Hold it together with others who share."""
        with self._changed:
            ticket = self._draw()
            self._changed.wait_for(lambda: self._serving == ticket)
            self._sharing += 1
            # The next in line may share as well; one who does not waits until nobody does any more.
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
