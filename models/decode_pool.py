"""The threads that decode. All models of a process share them, and one that hangs is missed by all, whichever model
its image was for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import TypeVar

from models import devices
from models.errors import DrainingError

_T = TypeVar("_T")


class DecodePool:
    """`threads` threads, of one core each."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._executor = ThreadPoolExecutor(
            threads, thread_name_prefix="decode", initializer=devices.use_one_core_in_this_thread
        )
        # By thread, when it began with what it has.
        self._since: dict[int, float] = {}

    def submit(self, decode: Callable[[], _T]) -> Future[_T]:
        """Run it behind what was submitted before, from any thread. Raises DrainingError once the pool is closed."""
        try:
            return self._executor.submit(self._timed, decode)
        except RuntimeError:
            raise DrainingError from None

    def longest_seconds(self) -> float:
        """How long the oldest decode under way has taken so far; 0 while there is none."""
        since = min(self._since.copy().values(), default=None)
        return 0.0 if since is None else perf_counter() - since

    def stuck(self, longest_s: float) -> str | None:
        """Why the pool has a thread less, where a decode takes longer than that; None while it has all."""
        seconds = self.longest_seconds()
        return None if seconds <= longest_s else f"an image has been decoded for {seconds:.0f} s"

    def close(self, timeout_s: float) -> bool:
        """Take nothing new, and end the threads once all that was submitted is done. False if they had not ended after
        `timeout_s`."""
        # The executor would wait for ever for a decode that hangs.
        ending = threading.Thread(target=self._executor.shutdown, name="decode-ending", daemon=True)
        ending.start()
        ending.join(timeout_s)
        return not ending.is_alive()

    def _timed(self, decode: Callable[[], _T]) -> _T:
        thread = threading.get_ident()
        self._since[thread] = perf_counter()
        try:
            return decode()
        finally:
            del self._since[thread]
