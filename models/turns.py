"""A lock that serves its waiters in order of arrival: serving and the lens take turns on a device."""

from __future__ import annotations

import threading
from types import TracebackType


class TurnLock:
    """First come, first served.

    threading.Lock makes no such promise: a loop that lets go and takes again at once can keep others out.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next_ticket = 0
        self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            ticket = self._next_ticket
            self._next_ticket += 1
            self._changed.wait_for(lambda: self._serving == ticket)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()
