"""Looks after the models: one whose forward hangs, or whose batcher has lost a thread, is replaced by a new one. Where
that would not help, it says so."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from time import perf_counter

_log = logging.getLogger(__name__)

# If a look comes so late, the whole process was stopped, and has not run for the time that forwards seem to have taken.
# What goes on has so long to end before it is judged.
_LATE_S = 2.0
_GRACE_S = 10.0


class Supervisor:
    """A thread that asks every `interval_s` seconds for `ailments`, by model, and calls `replace` for each.
    `beyond_cure` says what no replacement mends; None while there is nothing.

    After `most_replacements` of one model, or when replacing fails, it calls `give_up` with the reason, once, and
    ends: what does not get well by starting anew is for whoever has started the process.
    """

    def __init__(
        self,
        ailments: Callable[[], Mapping[str, str]],
        replace: Callable[[str], None],
        give_up: Callable[[str], None],
        *,
        beyond_cure: Callable[[], str | None] = lambda: None,
        interval_s: float = 1.0,
        most_replacements: int = 3,
    ) -> None:
        self._ailments = ailments
        self._replace = replace
        self._give_up = give_up
        self._beyond_cure = beyond_cure
        self._interval_s = interval_s
        self._most_replacements = most_replacements
        self._replaced: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more. Does not wait for a replacement under way: that may load a model for long."""
        self._stopping.set()

    def forget(self, name: str) -> None:
        """Another has been put in its place by hand: what was replaced before counts no more."""
        self._replaced.pop(name, None)

    def _work(self) -> None:
        judges_at = 0.0
        while True:
            waits_at = perf_counter()
            if self._stopping.wait(self._interval_s):
                return
            now = perf_counter()
            if now - waits_at > self._interval_s + _LATE_S:
                judges_at = now + _GRACE_S
            reason = self._looked() if now >= judges_at else None
            if reason is not None:
                _log.critical("giving up: %s", reason)
                self._give_up(reason)
                return

    def _looked(self) -> str | None:
        """Replace what is ill. Why that cannot be, or None."""
        reasons = (self._cure(name, ailment) for name, ailment in self._ailments().items())
        return self._beyond_cure() or next(filter(None, reasons), None)

    def _cure(self, name: str, ailment: str) -> str | None:
        """Replace a model. Why that cannot be, or None."""
        if self._replaced[name] == self._most_replacements:
            return f"{name} {ailment}, and was started anew {self._most_replacements} times already"
        self._replaced[name] += 1
        _log.error("%s %s: it is started anew (%d of %d)", name, ailment, self._replaced[name], self._most_replacements)
        try:
            self._replace(name)
        except Exception as error:  # noqa: BLE001 - whatever it was, it ends the attempts
            _log.exception("%s cannot be started anew", name)
            return f"{name} {ailment}, and cannot be started anew: {type(error).__name__}: {error}"
        return None
