"""FairLock: one holder at a time or several who share, waiters served in order of arrival, and a failing holder passes
its turn on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.scheduling.fair_lock import FairLock

_PATIENCE_S = 30


class _Ticketed(FairLock):
    """Tells when a waiter has drawn its ticket: it is about to wait for its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = threading.Semaphore(0)
        wait_for = self._changed.wait_for

        def noted(*arguments: object, **options: object) -> bool:
            self.drawn.release()
            return wait_for(*arguments, **options)  # type: ignore[arg-type]

        self._changed.wait_for = noted  # type: ignore[method-assign]

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


def test_who_lets_go_and_takes_again_at_once_stands_behind_those_who_wait() -> None:
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


def test_a_holder_that_fails_passes_its_turn_on() -> None:
    lock = FairLock()
    with pytest.raises(LookupError), lock:
        raise LookupError

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(lambda: lock.__enter__() is None).result(_PATIENCE_S)


def test_two_who_share_hold_it_at_the_same_time() -> None:
    lock, both = FairLock(), threading.Barrier(2)

    def share() -> None:
        with lock.shared():
            both.wait(_PATIENCE_S)

    with ThreadPoolExecutor(2) as threads:
        for sharing in [threads.submit(share) for _ in range(2)]:
            sharing.result(_PATIENCE_S)


def test_one_who_does_not_share_waits_for_all_who_do_and_those_behind_wait_for_that_one() -> None:
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


def test_one_of_those_who_share_and_fails_lets_go() -> None:
    lock = FairLock()
    with pytest.raises(LookupError), lock.shared():
        raise LookupError

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(lambda: lock.__enter__() is None).result(_PATIENCE_S)
