"""The threads of a batcher: they are prepared one after another, then run batches concurrently."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter


class BatchThreads:
    """`count` threads. Each calls `prepare` once and then `work`. If `prepare` raises in one of them, `on_failure` is
    called there, and neither that thread nor the later ones call `work`."""

    def __init__(
        self,
        count: int,
        *,
        name: str,
        prepare: Callable[[], None],
        work: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._prepare = prepare
        self._work = work
        self._on_failure = on_failure
        self._prepared: list[Future[None]] = [Future() for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._run, args=(index,), name=name, daemon=True) for index in range(count)
        ]

    def start(self) -> None:
        """Start the threads. Raises RuntimeError if the system has no thread left; then those that have started end."""
        for thread in self._threads:
            try:
                thread.start()
            except BaseException:
                self._on_failure()
                raise

    def wait_until_prepared(self) -> None:
        """Wait until every thread is prepared. Raises what `prepare` raised."""
        for prepared in self._prepared:
            prepared.result()

    @property
    def alive(self) -> bool:
        """Whether every thread is running."""
        return all(thread.is_alive() for thread in self._threads)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for all threads to end. Returns False if one still ran after `timeout_s`."""
        until = None if timeout_s is None else perf_counter() + timeout_s
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - perf_counter()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, index: int) -> None:
        try:
            for earlier in self._prepared[:index]:
                earlier.result()
            self._prepare()
        except BaseException as error:  # noqa: BLE001 - raised by wait_until_prepared
            self._on_failure()
            self._prepared[index].set_exception(error)
            return
        self._prepared[index].set_result(None)
        self._work()
