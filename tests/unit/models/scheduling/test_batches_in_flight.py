"""Two batches in flight: a full batch starts while another runs, any other if the running batch allows overlap."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from time import perf_counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from models.interface.errors import ModelDownError
from models.scheduling.batcher import Batcher

if TYPE_CHECKING:
    from tests.unit.conftest import GatedDevice

_PATIENCE_S = 30

NewBatcher = Callable[..., Batcher[Any, Any]]


def test_a_full_batch_starts_while_another_runs(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_concurrent_batches=2, max_batch_size=2)
    batcher.submit(1)
    device.wait_until_busy()
    batcher.submit(2)
    batcher.submit(3)
    device.wait_until_busy()
    assert device.batches == [[1], [2, 3]]


def test_a_batch_that_is_not_full_waits_for_the_device(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_concurrent_batches=2, max_batch_size=3)
    running = batcher.submit(1)
    device.wait_until_busy()
    waiting = [batcher.submit(item) for item in (2, 3)]
    assert batcher.depth == 2
    device.finish_one()
    running.result(_PATIENCE_S)
    device.wait_until_busy()
    device.finish_one()
    assert [future.result(_PATIENCE_S).result for future in waiting] == [20, 30]
    assert device.batches == [[1], [2, 3]]


def test_a_batch_that_is_not_full_starts_alongside_a_batch_that_allows_overlap(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_concurrent_batches=2, max_batch_size=3, overlap_min_size=1)
    batcher.submit(1)
    device.wait_until_busy()
    batcher.submit(2)
    device.wait_until_busy()
    assert device.batches == [[1], [2]]


def test_only_a_full_batch_starts_alongside_a_batch_below_the_overlap_size(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_concurrent_batches=2, max_batch_size=3, overlap_min_size=2)
    batcher.submit(1)
    device.wait_until_busy()
    for item in (2, 3):
        batcher.submit(item)
    assert batcher.depth == 2
    batcher.submit(4)
    device.wait_until_busy()
    assert device.batches == [[1], [2, 3, 4]]


def test_a_full_batch_allows_no_overlap(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_concurrent_batches=2, max_batch_size=2, overlap_min_size=2)
    first = batcher.submit(0)
    device.wait_until_busy()
    for item in (1, 2):
        batcher.submit(item)
    device.wait_until_busy()
    device.finish_one()
    first.result(_PATIENCE_S)
    # Long enough for the idle thread to take the item if it could.
    wait([batcher.submit(3)], 0.1)
    assert batcher.depth == 1
    batcher.submit(4)
    device.wait_until_busy()
    assert device.batches == [[0], [1, 2], [3, 4]]


def test_a_batch_that_started_alongside_another_allows_overlap_at_any_size(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_concurrent_batches=2, max_batch_size=3, overlap_min_size=2)
    held = [batcher.submit(0)]
    device.wait_until_busy()
    held += [batcher.submit(item) for item in (1, 2)]
    device.finish_one()
    device.wait_until_busy()
    # The batch of two allows an overlap; so does the single item that starts alongside it.
    held.append(batcher.submit(3))
    device.wait_until_busy()
    assert device.batches == [[0], [1, 2], [3]]
    device.finish_one()
    wait(held[1:], _PATIENCE_S, return_when=FIRST_COMPLETED)
    held.append(batcher.submit(4))
    device.wait_until_busy()
    assert device.batches == [[0], [1, 2], [3], [4]]


def test_no_more_batches_run_than_max_concurrent_batches(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_concurrent_batches=2, max_batch_size=1)
    futures = [batcher.submit(item) for item in range(3)]
    device.wait_until_busy()
    device.wait_until_busy()
    assert batcher.depth == 1
    device.open()
    device.finish_one()
    assert sorted(future.result(_PATIENCE_S).result for future in futures) == [0, 10, 20]


def test_the_forward_time_of_a_queued_batch_starts_when_the_previous_batch_ends() -> None:
    begun, finish = threading.Semaphore(0), {item: threading.Event() for item in (1, 2)}

    def run(items: Sequence[int]) -> Sequence[int]:
        begun.release()
        assert finish[items[0]].wait(_PATIENCE_S)
        return items

    batcher: Batcher[int, int] = Batcher(run, name="m", max_concurrent_batches=2, max_batch_size=1)
    futures = []
    for item in (1, 2):
        futures.append(batcher.submit(item))
        assert begun.acquire(timeout=_PATIENCE_S)
    both_begun_at = perf_counter()
    finish[1].set()
    first = futures[0].result(_PATIENCE_S)
    finish[2].set()
    second = futures[1].result(_PATIENCE_S)
    assert batcher.close(_PATIENCE_S)

    first_ended_at = first.batch.started_at + first.batch.forward_seconds
    assert second.batch.started_at == pytest.approx(first_ended_at, abs=1e-6)
    assert second.queue_seconds > first_ended_at - both_begun_at


@pytest.mark.parametrize(
    ("ends_first", "forward_seconds", "busy_seconds"),
    [(1, {1: 5, 2: 4}, {1: 5, 2: 1}), (2, {1: 6, 2: 3}, {2: 5, 1: 1})],
)
def test_overlapping_batches_have_their_own_forward_times_and_share_the_busy_time(
    ends_first: int, forward_seconds: dict[int, float], busy_seconds: dict[int, float], clock: list[float]
) -> None:
    begun, finish = threading.Semaphore(0), {1: threading.Event(), 2: threading.Event()}

    def run(items: Sequence[int]) -> Sequence[int]:
        begun.release()
        assert finish[items[0]].wait(_PATIENCE_S)
        return items

    batcher: Batcher[int, int] = Batcher(run, name="m", max_concurrent_batches=2, max_batch_size=4, overlap_min_size=1)
    futures = {}
    for item in (1, 2):
        futures[item] = batcher.submit(item)
        assert begun.acquire(timeout=_PATIENCE_S)
        clock[0] += 2
    # The second was begun two seconds ago, the first four.
    reports = {}
    for item in (ends_first, 3 - ends_first):
        clock[0] += 1
        finish[item].set()
        completed = futures[item].result(_PATIENCE_S)
        assert completed.queue_seconds == 0
        reports[item] = completed.batch

    assert {item: report.forward_seconds for item, report in reports.items()} == forward_seconds
    assert {item: report.busy_seconds for item, report in reports.items()} == busy_seconds
    # Six seconds for two items, of which the later count less.
    assert batcher.expected_seconds(2) == pytest.approx(2 * (0.8 * 5 + 0.2 * 1))
    assert batcher.close(_PATIENCE_S)


def test_running_seconds_are_those_of_the_oldest_batch(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_concurrent_batches=2, max_batch_size=1)
    batcher.submit(1)
    device.wait_until_busy()
    before = perf_counter()
    batcher.submit(2)
    device.wait_until_busy()
    least = perf_counter() - before
    age = batcher.running_seconds()
    assert age > least


def test_items_of_both_batches_each_have_their_own_error_when_the_batcher_is_abandoned(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_concurrent_batches=2, max_batch_size=2)
    futures = [batcher.submit(1)]
    device.wait_until_busy()
    futures += [batcher.submit(item) for item in (2, 3)]
    device.wait_until_busy()
    futures.append(batcher.submit(4))
    batcher.abandon(lambda: ModelDownError("m"))
    errors = [future.exception(_PATIENCE_S) for future in futures]
    assert all(isinstance(error, ModelDownError) for error in errors)
    assert len(set(map(id, errors))) == 4


def test_one_thread_forms_a_delayed_batch() -> None:
    batches: list[list[int]] = []

    def run(items: Sequence[int]) -> Sequence[int]:
        batches.append(list(items))
        return items

    batcher: Batcher[int, int] = Batcher(
        run, name="m", max_concurrent_batches=2, max_batch_size=4, max_batch_delay_s=_PATIENCE_S
    )
    futures = [batcher.submit(item) for item in range(4)]
    wait(futures, _PATIENCE_S)
    assert batcher.close(_PATIENCE_S)
    assert batches == [[0, 1, 2, 3]]


def test_another_thread_runs_the_full_batch_that_is_left_after_a_delayed_one(
    new_batcher: NewBatcher, device: GatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = _OtherThreadChecksFirst()
    # Otherwise the kernel decides which thread gets the lock first.
    patched = SimpleNamespace(Condition=lambda: changed, Thread=threading.Thread)
    monkeypatch.setattr("models.scheduling.batcher.threading", patched)
    batcher = new_batcher(max_concurrent_batches=2, max_batch_size=2, max_batch_delay_s=_PATIENCE_S)
    batcher.submit(0)
    assert changed.forming.wait(_PATIENCE_S)
    with changed:
        for item in range(1, 5):
            batcher.submit(item)
        changed.burst = True
    device.wait_until_busy()
    device.wait_until_busy()
    assert sorted(device.batches) == [[0, 1], [2, 3]]


class _OtherThreadChecksFirst(threading.Condition):
    """Hold the thread that delays a batch until the other thread has checked the queue, after `burst`."""

    def __init__(self) -> None:
        super().__init__()
        self.forming = threading.Event()
        self.burst = False
        self._checked = False

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        if timeout is not None:
            self.forming.set()
            return super().wait_for(lambda: predicate() and self._checked, timeout)
        return super().wait_for(lambda: self._check(predicate))

    def _check(self, predicate: Callable[[], Any]) -> Any:
        if self.burst and not self._checked:
            self._checked = True
            self.notify_all()
        return predicate()


def test_the_batch_threads_are_prepared_one_after_another() -> None:
    threads: list[int] = []
    inside = threading.Lock()

    def prepare() -> None:
        assert inside.acquire(blocking=False)
        threads.append(threading.get_ident())
        inside.release()

    batcher: Batcher[int, int] = Batcher(lambda items: items, name="m", max_concurrent_batches=2, prepare=prepare)
    assert len(set(threads)) == len(threads) == 2
    assert batcher.close(_PATIENCE_S)


def test_the_started_threads_end_if_another_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def only_one(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", only_one)
    with pytest.raises(RuntimeError, match="new thread"):
        Batcher(lambda items: items, name="m", max_concurrent_batches=2)
    started[0].join(_PATIENCE_S)
    assert not started[0].is_alive()


@pytest.mark.parametrize("fails_at", [1, 2])
def test_the_error_of_a_thread_that_cannot_be_prepared_is_raised_and_the_others_end(fails_at: int) -> None:
    prepared: list[threading.Thread] = []

    def prepare() -> None:
        prepared.append(threading.current_thread())
        if len(prepared) == fails_at:
            raise LookupError("no such device")

    with pytest.raises(LookupError, match="no such device"):
        Batcher(lambda items: items, name="m", max_concurrent_batches=2, prepare=prepare)
    assert len(prepared) == fails_at
    assert not any(thread.is_alive() for thread in prepared)
