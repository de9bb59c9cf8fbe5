"""FairLock serves waiters in order of arrival, exclusively or shared, and an error releases it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.scheduling.fair_lock import FairLock

_PATIENCE_S = 30


class _Ticketed(FairLock):
    """Signals when a waiter has drawn its ticket and is about to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = threading.Semaphore(0)
        wait_for = self._changed.wait_for

        def signal(*arguments: object, **options: object) -> bool:
            self.drawn.release()
            return wait_for(*arguments, **options)  # type: ignore[arg-type]

        self._changed.wait_for = signal  # type: ignore[method-assign]

    def await_ticket(self) -> None:
        assert self.drawn.acquire(timeout=_PATIENCE_S)


def test_waiters_are_served_in_order_of_arrival() -> None:
    lock, served = _Ticketed(), []

    def wait_in_line(number: int) -> None:
        with lock:
            served.append(number)

    with ThreadPoolExecutor(8) as threads, lock:
        lock.await_ticket()
        for number in range(8):
            threads.submit(wait_in_line, number)
            lock.await_ticket()
        assert served == []

    assert served == list(range(8))


def test_a_thread_that_acquires_the_lock_again_waits_behind_the_others() -> None:
    lock, served = _Ticketed(), []

    def wait_in_line() -> None:
        with lock:
            served.append("waiter")

    with ThreadPoolExecutor(1) as threads:
        with lock:
            lock.await_ticket()
            threads.submit(wait_in_line)
            lock.await_ticket()
        with lock:
            served.append("again")

    assert served == ["waiter", "again"]


def test_an_error_releases_the_lock() -> None:
    lock = FairLock()
    with pytest.raises(LookupError), lock:
        raise LookupError

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(lambda: lock.__enter__() is None).result(_PATIENCE_S)


def test_two_threads_can_share_the_lock() -> None:
    lock, both = FairLock(), threading.Barrier(2)

    def share() -> None:
        with lock.shared():
            both.wait(_PATIENCE_S)

    with ThreadPoolExecutor(2) as threads:
        for sharing in [threads.submit(share) for _ in range(2)]:
            sharing.result(_PATIENCE_S)


def test_an_exclusive_waiter_waits_for_all_sharers_and_later_sharers_wait_for_it() -> None:
    lock, served = _Ticketed(), []

    def alone() -> None:
        with lock:
            served.append("alone")

    def share() -> None:
        with lock.shared():
            served.append("sharing")

    with ThreadPoolExecutor(2) as threads, lock.shared():
        lock.await_ticket()
        with lock.shared():
            lock.await_ticket()
            threads.submit(alone)
            lock.await_ticket()
            threads.submit(share)
            lock.await_ticket()
        assert served == []

    assert served == ["alone", "sharing"]


def test_an_error_releases_a_shared_lock() -> None:
    lock = FairLock()
    with pytest.raises(LookupError), lock.shared():
        raise LookupError

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(lambda: lock.__enter__() is None).result(_PATIENCE_S)
