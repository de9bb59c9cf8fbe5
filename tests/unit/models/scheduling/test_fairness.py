"""The fair queue takes turns between fairness keys, and the fair lock serves waiters in order of arrival."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scheduling.batcher import Batcher
from models.scheduling.fairness import FairLock, FairQueue

if TYPE_CHECKING:
    from tests.unit.conftest import GatedDevice


def drained(queue: FairQueue[tuple[str, int]]) -> list[tuple[str, int]]:
    return [queue.popleft() for _ in range(len(queue))]


def test_keys_with_one_entry_each_are_served_in_order_of_arrival() -> None:
    queue = FairQueue[tuple[str, int]]()
    for key in "abcd":
        queue.append(key, (key, 0), key)
    assert [key for key, _ in drained(queue)] == list("abcd")


def test_a_single_entry_waits_for_one_entry_of_a_key_with_many() -> None:
    queue = FairQueue[tuple[str, int]]()
    for number in range(64):
        queue.append(number, ("many", number), "many")
    queue.append("one", ("one", 0), "one")
    assert drained(queue)[:3] == [("many", 0), ("one", 0), ("many", 1)]


def test_an_empty_queue_raises_index_error() -> None:
    with pytest.raises(IndexError):
        FairQueue[int]().popleft()


def test_a_key_loses_its_turn_only_with_its_last_entry() -> None:
    queue = FairQueue[tuple[str, int]]()
    for number, key in enumerate("aabb"):
        queue.append(number, (key, number), key)
    assert queue.remove(0)
    assert not queue.remove(0)
    assert queue.remove(2)
    assert queue.remove(3)
    queue.append(4, ("c", 4), "c")
    assert len(queue) == 2
    assert drained(queue) == [("a", 1), ("c", 4)]
    assert not queue.remove(1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_removed_entries_do_not_affect_the_order_of_the_others(
    arrivals: list[tuple[str, bool]],
) -> None:
    queue, never_held = FairQueue[tuple[str, int]](), FairQueue[tuple[str, int]]()
    for number, (key, leaves) in enumerate(arrivals):
        queue.append(number, (key, number), key)
        if leaves:
            assert queue.remove(number)
        else:
            never_held.append(number, (key, number), key)
    assert len(queue) == len(never_held)
    assert drained(queue) == drained(never_held)


@given(st.lists(st.sampled_from("abc")))
def test_every_entry_is_returned_once_and_in_order_for_each_key(keys: list[str]) -> None:
    queue = FairQueue[tuple[str, int]]()
    for number, key in enumerate(keys):
        queue.append(number, (key, number), key)
    if keys:
        assert min(number for _, number in queue.firsts()) == 0
    found = drained(queue)
    assert sorted(found, key=lambda entry: entry[1]) == [(key, number) for number, key in enumerate(keys)]
    by_key = defaultdict(list)
    for key, number in found:
        by_key[key].append(number)
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_no_key_has_two_turns_while_another_waits_for_one(keys: list[str]) -> None:
    queue = FairQueue[tuple[str, int]]()
    for number, key in enumerate(keys):
        queue.append(number, (key, number), key)
    waiting = {key: keys.count(key) for key in set(keys)}
    served: dict[str, int] = defaultdict(int)
    for key, _ in drained(queue):
        served[key] += 1
        waiting[key] -= 1
        assert all(served[other] >= served[key] - 1 for other, left in waiting.items() if left)


def test_a_request_with_one_image_is_in_the_next_batch_despite_a_request_with_many(
    new_device: Callable[[], GatedDevice],
) -> None:
    device = new_device()
    batcher = Batcher(
        device.run, name="m", max_batch_size=8, fairness_key=lambda item: "many" if 0 <= item < 64 else item
    )
    batcher.submit(-1)
    device.wait_until_busy()
    for item in range(64):
        batcher.submit(item)
    batcher.submit(1000)
    device.open()
    assert batcher.close(30)
    assert 1000 in device.batches[1]


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
