"""The decodes of one version of a model, in a pool that all share: between the pipeline and the decode pool."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from models.decode_pool import DecodePool

T = TypeVar("T")


class CountedDecodes:
    """Knows whether a decode waits or runs, also one whose client has disconnected. `on_idle` is called when none does
    any more, from the thread that ran the last."""

    def __init__(self, pool: DecodePool, on_idle: Callable[[], None]) -> None:
        self._pool = pool
        self._on_idle = on_idle
        self._unfinished: set[Future[Any]] = set()

    @property
    def idle(self) -> bool:
        """Whether nothing more will be submitted to the batcher by a decode."""
        return not self._unfinished

    @property
    def threads(self) -> int:
        """As DecodePool.threads."""
        return self._pool.threads

    def submit(self, decode: Callable[[], T]) -> Future[T]:
        """As DecodePool.submit."""
        future = self._pool.submit(decode)
        self._unfinished.add(future)
        future.add_done_callback(self._finished)
        return future

    def _finished(self, future: Future[T]) -> None:
        self._unfinished.discard(future)
        if not self._unfinished:
            self._on_idle()
