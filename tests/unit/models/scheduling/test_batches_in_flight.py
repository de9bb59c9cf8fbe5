"""Two lanes: a full batch is begun while another runs, any other where there is room, and everybody hears once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

from models.interface.errors import DrainingError, ModelDownError
from models.scheduling.batcher import Batcher

if TYPE_CHECKING:
    from tests.unit.conftest import GatedDevice

_PATIENCE_S = 30

NewBatcher = Callable[..., Batcher[Any, Any]]


def test_a_batch_that_is_full_is_begun_while_another_runs(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=2)
    batcher.submit(1)
    device.wait_until_busy()
    batcher.submit(2)
    batcher.submit(3)
    device.wait_until_busy()
    assert device.batches == [[1], [2, 3]]


def test_a_batch_that_is_not_full_waits_for_the_device(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=3)
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


def test_beside_a_batch_that_allows_overlap_one_is_begun_that_is_not_full(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=3, overlap_min_size=1)
    batcher.submit(1)
    device.wait_until_busy()
    batcher.submit(2)
    device.wait_until_busy()
    assert device.batches == [[1], [2]]


def test_beside_a_batch_smaller_than_allows_overlap_only_a_full_one_is_begun(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=3, overlap_min_size=2)
    batcher.submit(1)
    device.wait_until_busy()
    for item in (2, 3):
        batcher.submit(item)
    assert batcher.depth == 2
    batcher.submit(4)
    device.wait_until_busy()
    assert device.batches == [[1], [2, 3, 4]]


def test_a_full_batch_leaves_no_room(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=2, overlap_min_size=2)
    first = batcher.submit(0)
    device.wait_until_busy()
    for item in (1, 2):
        batcher.submit(item)
    device.wait_until_busy()
    device.finish_one()
    first.result(_PATIENCE_S)
    # Long enough for the lane that is free, were it to take it.
    wait([batcher.submit(3)], 0.1)
    assert batcher.depth == 1
    batcher.submit(4)
    device.wait_until_busy()
    assert device.batches == [[0], [1, 2], [3, 4]]


def test_a_batch_that_was_begun_beside_another_allows_overlap_however_small(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=3, overlap_min_size=2)
    held = [batcher.submit(0)]
    device.wait_until_busy()
    held += [batcher.submit(item) for item in (1, 2)]
    device.finish_one()
    device.wait_until_busy()
    # Two run, and leave room for one, which does too: once they have ended, the next comes beside it.
    held.append(batcher.submit(3))
    device.wait_until_busy()
    assert device.batches == [[0], [1, 2], [3]]
    device.finish_one()
    wait(held[1:], _PATIENCE_S, return_when=FIRST_COMPLETED)
    held.append(batcher.submit(4))
    device.wait_until_busy()
    assert device.batches == [[0], [1, 2], [3], [4]]


def test_no_more_batches_are_begun_than_there_are_lanes(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=1)
    futures = [batcher.submit(item) for item in range(3)]
    device.wait_until_busy()
    device.wait_until_busy()
    assert batcher.depth == 1
    device.open()
    device.finish_one()
    assert sorted(future.result(_PATIENCE_S).result for future in futures) == [0, 10, 20]


def test_one_who_waits_in_a_batch_that_is_not_full_can_still_leave(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=2)
    batcher.submit(1)
    device.wait_until_busy()
    assert batcher.submit(2).cancel()
    stays = batcher.submit(3)
    device.finish_one()
    device.wait_until_busy()
    device.finish_one()
    stays.result(_PATIENCE_S)
    assert device.batches == [[1], [3]]


def test_the_forward_of_a_batch_counts_from_the_end_of_the_one_before() -> None:
    begun, let_go = threading.Semaphore(0), {item: threading.Event() for item in (1, 2)}

    def run(items: Sequence[int]) -> Sequence[int]:
        begun.release()
        assert let_go[items[0]].wait(_PATIENCE_S)
        return items

    batcher: Batcher[int, int] = Batcher(run, name="m", max_in_flight=2, max_batch_size=1)
    futures = []
    for item in (1, 2):
        futures.append(batcher.submit(item))
        assert begun.acquire(timeout=_PATIENCE_S)
    both_begun_at = perf_counter()
    let_go[1].set()
    first = futures[0].result(_PATIENCE_S)
    let_go[2].set()
    second = futures[1].result(_PATIENCE_S)
    assert batcher.close(_PATIENCE_S)

    first_ended_at = first.batch.started_at + first.batch.forward_seconds
    assert second.batch.started_at == pytest.approx(first_ended_at, abs=1e-6)
    assert second.queue_seconds > first_ended_at - both_begun_at


@pytest.mark.parametrize(
    ("ends_first", "forward_seconds", "busy_seconds"),
    [(1, {1: 5, 2: 4}, {1: 5, 2: 1}), (2, {1: 6, 2: 3}, {2: 5, 1: 1})],
)
def test_of_batches_side_by_side_each_has_a_forward_of_its_own_and_no_second_is_busy_twice(
    ends_first: int, forward_seconds: dict[int, float], busy_seconds: dict[int, float], clock: list[float]
) -> None:
    begun, let_go = threading.Semaphore(0), {1: threading.Event(), 2: threading.Event()}

    def run(items: Sequence[int]) -> Sequence[int]:
        begun.release()
        assert let_go[items[0]].wait(_PATIENCE_S)
        return items

    batcher: Batcher[int, int] = Batcher(run, name="m", max_in_flight=2, max_batch_size=4, overlap_min_size=1)
    futures = {}
    for item in (1, 2):
        futures[item] = batcher.submit(item)
        assert begun.acquire(timeout=_PATIENCE_S)
        clock[0] += 2
    # The second was begun two seconds ago, the first four.
    reports = {}
    for item in (ends_first, 3 - ends_first):
        clock[0] += 1
        let_go[item].set()
        completed = futures[item].result(_PATIENCE_S)
        assert completed.queue_seconds == 0
        reports[item] = completed.batch

    assert {item: report.forward_seconds for item, report in reports.items()} == forward_seconds
    assert {item: report.busy_seconds for item, report in reports.items()} == busy_seconds
    # Six seconds for two items, of which the later count less.
    assert batcher.expected_seconds(2) == pytest.approx(2 * (0.8 * 5 + 0.2 * 1))
    assert batcher.close(_PATIENCE_S)


def test_what_runs_has_the_age_of_the_older_batch(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=1)
    batcher.submit(1)
    device.wait_until_busy()
    before = perf_counter()
    batcher.submit(2)
    device.wait_until_busy()
    age = batcher.running_seconds()
    assert age > perf_counter() - before


def test_those_in_both_batches_each_get_an_error_of_their_own_when_it_is_abandoned(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=2)
    futures = [batcher.submit(1)]
    device.wait_until_busy()
    futures += [batcher.submit(item) for item in (2, 3)]
    device.wait_until_busy()
    futures.append(batcher.submit(4))
    batcher.abandon(lambda: ModelDownError("m"))
    errors = [future.exception(_PATIENCE_S) for future in futures]
    assert all(isinstance(error, ModelDownError) for error in errors)
    assert len(set(map(id, errors))) == 4


def test_whoever_was_accepted_is_answered_when_it_closes(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_in_flight=2, max_batch_size=2)
    futures = [batcher.submit(item) for item in range(5)]
    device.open()
    assert batcher.close(_PATIENCE_S)
    assert [future.result().result for future in futures] == [0, 10, 20, 30, 40]


def test_a_batch_that_waits_for_company_is_formed_by_one_lane() -> None:
    batches: list[list[int]] = []

    def run(items: Sequence[int]) -> Sequence[int]:
        batches.append(list(items))
        return items

    batcher: Batcher[int, int] = Batcher(run, name="m", max_in_flight=2, max_batch_size=4, max_wait_s=_PATIENCE_S)
    futures = [batcher.submit(item) for item in range(4)]
    wait(futures, _PATIENCE_S)
    assert batcher.close(_PATIENCE_S)
    assert batches == [[0, 1, 2, 3]]


def test_a_full_batch_left_by_the_batch_that_waited_is_begun_by_the_other_lane(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    prepared = threading.Event()
    batcher = new_batcher(max_in_flight=2, max_batch_size=2, max_wait_s=_PATIENCE_S, prepare=prepared.wait)
    changed = _OtherLaneLooksFirst()
    batcher._changed = changed  # noqa: SLF001 - which lane gets the lock first is otherwise up to the kernel
    prepared.set()
    batcher.wait_until_ready()
    batcher.submit(0)
    assert changed.forming.wait(_PATIENCE_S)
    with changed:
        for item in range(1, 5):
            batcher.submit(item)
        changed.burst = True
    device.wait_until_busy()
    device.wait_until_busy()
    assert sorted(device.batches) == [[0, 1], [2, 3]]


class _OtherLaneLooksFirst(threading.Condition):
    """Hold the lane that waits for a batch to fill until the other lane has looked at the queue, after `burst`."""

    def __init__(self) -> None:
        super().__init__()
        self.forming = threading.Event()
        self.burst = False
        self._looked = False

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        if timeout is not None:
            self.forming.set()
            return super().wait_for(lambda: predicate() and self._looked, timeout)
        return super().wait_for(lambda: self._look(predicate))

    def _look(self, predicate: Callable[[], Any]) -> Any:
        if self.burst and not self._looked:
            self._looked = True
            self.notify_all()
        return predicate()


def test_each_lane_is_prepared_in_its_own_thread_one_after_another() -> None:
    threads: list[int] = []
    inside = threading.Lock()

    def prepare() -> None:
        assert inside.acquire(blocking=False)
        threads.append(threading.get_ident())
        inside.release()

    batcher: Batcher[int, int] = Batcher(lambda items: items, name="m", max_in_flight=2, prepare=prepare)
    batcher.wait_until_ready()
    assert len(set(threads)) == len(threads) == 2
    assert batcher.close(_PATIENCE_S)


def test_a_lane_for_which_there_is_no_thread_ends_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def only_one(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", only_one)
    with pytest.raises(RuntimeError, match="new thread"):
        Batcher(lambda items: items, name="m", max_in_flight=2)
    started[0].join(_PATIENCE_S)
    assert not started[0].is_alive()


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_lane_that_cannot_be_prepared_closes_all(fails_at: int) -> None:
    calls: list[int] = []

    def prepare() -> None:
        calls.append(1)
        if len(calls) == fails_at:
            raise LookupError("no such device")

    batcher: Batcher[int, int] = Batcher(lambda items: items, name="m", max_in_flight=2, prepare=prepare)
    with pytest.raises(LookupError):
        batcher.wait_until_ready()
    with pytest.raises(DrainingError):
        batcher.submit(1)
    assert batcher.close(_PATIENCE_S)
    assert len(calls) == fails_at
