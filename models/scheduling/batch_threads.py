"""The threads of a batcher: prepared one after another, then each at the same work until that is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter


class BatchThreads:
    """`count` threads, each of which calls `prepare` once and then `work`. Once `prepare` has raised in one of them,
    `on_failure` is called there, and neither it nor those behind it come to their work."""

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
            threading.Thread(target=self._run, args=(lane,), name=name, daemon=True) for lane in range(count)
        ]

    def start(self) -> None:
        """Begin to prepare, without waiting for it. Raises RuntimeError when the system has no thread left; those that
        were started end."""
        for thread in self._threads:
            try:
                thread.start()
            except BaseException:
                self._on_failure()
                raise

    def wait_until_prepared(self) -> None:
        """Return once all are; raises what `prepare` raised."""
        for prepared in self._prepared:
            prepared.result()

    @property
    def alive(self) -> bool:
        """Whether none of them has ended."""
        return all(thread.is_alive() for thread in self._threads)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of all, for `timeout_s` at most. False if one goes on."""
        until = None if timeout_s is None else perf_counter() + timeout_s
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - perf_counter()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, lane: int) -> None:
        try:
            for earlier in self._prepared[:lane]:
                earlier.result()
            self._prepare()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits in wait_until_prepared
            self._on_failure()
            self._prepared[lane].set_exception(error)
            return
        self._prepared[lane].set_result(None)
        self._work()
