"""The supervisor: restarts a model whose forward hangs or whose batcher has lost a thread, and shuts the process down
if that does not help."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from time import perf_counter

_log = logging.getLogger(__name__)

# A check that is this late means that the whole process was suspended. The running forwards then only seem to hang:
# they get the grace time before they are checked again.
_LATE_S = 2.0
_GRACE_S = 10.0


class Supervisor:
    """A thread that calls `health_problems` every `interval_s` seconds, and `restart` for each model that has one.

    `fatal_problem` returns a problem that no restart solves, or None. The supervisor calls `shut_down` with the reason
    and ends if there is a fatal problem, if a restart fails, or after `max_restarts` of one model.
    """

    def __init__(
        self,
        health_problems: Callable[[], Mapping[str, str]],
        restart: Callable[[str], None],
        shut_down: Callable[[str], None],
        *,
        fatal_problem: Callable[[], str | None] = lambda: None,
        interval_s: float = 1.0,
        max_restarts: int = 3,
    ) -> None:
        self._health_problems = health_problems
        self._restart = restart
        self._shut_down = shut_down
        self._fatal_problem = fatal_problem
        self._interval_s = interval_s
        self._max_restarts = max_restarts
        self._restarts: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Does not wait for a restart that is running, which may take as long as a load."""
        self._stopping.set()

    def forget(self, name: str) -> None:
        """Forget the restarts of a model, since an operator has replaced it."""
        self._restarts.pop(name, None)

    def _work(self) -> None:
        check_from = 0.0
        while True:
            slept_at = perf_counter()
            if self._stopping.wait(self._interval_s):
                return
            now = perf_counter()
            if now - slept_at > self._interval_s + _LATE_S:
                check_from = now + _GRACE_S
            reason = self._check() if now >= check_from else None
            if reason is not None:
                _log.critical("shutting down: %s", reason)
                self._shut_down(reason)
                return

    def _check(self) -> str | None:
        """Restart unhealthy models. Returns why the process must end, or None."""
        reasons = (self._restart_once(name, problem) for name, problem in self._health_problems().items())
        return self._fatal_problem() or next(filter(None, reasons), None)

    def _restart_once(self, name: str, problem: str) -> str | None:
        """Restart a model. Returns why that is not possible, or None."""
        if self._restarts[name] == self._max_restarts:
            return f"{name} {problem}, and was already restarted {self._max_restarts} times"
        self._restarts[name] += 1
        _log.error("%s %s; restarting it (%d of %d)", name, problem, self._restarts[name], self._max_restarts)
        try:
            self._restart(name)
        except Exception as error:  # noqa: BLE001 - any error ends the attempts
            _log.exception("%s cannot be restarted", name)
            return f"{name} {problem}, and cannot be restarted: {type(error).__name__}: {error}"
        return None
