"""The batcher until its close or abandon: it answers every accepted item."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from models.interface.errors import DrainingError, ModelDownError
from models.scheduling.batcher import Batcher

if TYPE_CHECKING:
    from tests.unit.conftest import GatedDevice

_PATIENCE_S = 30

NewBatcher = Callable[..., Batcher[Any, Any]]


def test_a_closing_batcher_answers_accepted_items_and_refuses_new_ones(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_batch_size=2)
    accepted = [batcher.submit(0)]
    device.wait_until_busy()
    accepted += [batcher.submit(item) for item in range(1, 6)]

    assert not batcher.close(timeout_s=0)
    assert not batcher.alive
    with pytest.raises(DrainingError):
        batcher.submit(6)
    device.open()

    assert batcher.close(_PATIENCE_S)
    assert [future.result(0).result for future in accepted] == [0, 10, 20, 30, 40, 50]


def test_closing_ends_the_batching_delay(new_batcher: NewBatcher, device: GatedDevice) -> None:
    device.open()
    batcher = new_batcher(max_batch_size=8, max_batch_delay_s=10_000.0)
    accepted = batcher.submit(1)

    assert batcher.close(_PATIENCE_S)
    assert accepted.result(0).result == 10


def test_close_may_be_called_twice(new_batcher: NewBatcher) -> None:
    batcher = new_batcher()

    assert batcher.close(_PATIENCE_S)
    assert batcher.close(_PATIENCE_S)


def test_every_item_submitted_during_close_is_answered_or_refused(
    new_batcher: NewBatcher,
) -> None:
    submitters, each = 6, 400
    enough, start = threading.Event(), threading.Barrier(submitters)
    sizes: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        if sum(sizes) > submitters * each // 4:
            enough.set()
        return [-item for item in items]

    def submit_many(first: int) -> tuple[list[tuple[int, Future[Any]]], int]:
        accepted, refused = [], 0
        start.wait(_PATIENCE_S)
        for item in range(first, first + each):
            try:
                accepted.append((item, batcher.submit(item)))
            except DrainingError:
                refused += 1
        return accepted, refused

    batcher = new_batcher(run, max_batch_size=16, queue_capacity=submitters * each)
    with ThreadPoolExecutor(submitters) as threads:
        ends = [threads.submit(submit_many, number * each) for number in range(submitters)]
        assert enough.wait(_PATIENCE_S)
        assert batcher.close(_PATIENCE_S)
        outcomes = [end.result(_PATIENCE_S) for end in ends]

    accepted = [pair for pairs, _ in outcomes for pair in pairs]
    assert [future.result(0).result for _, future in accepted] == [-item for item, _ in accepted]
    assert len(accepted) + sum(refused for _, refused in outcomes) == submitters * each
    assert sum(sizes) == len(accepted)
    assert max(sizes) <= 16


def test_items_of_one_submitter_keep_their_order_among_those_of_others(new_batcher: NewBatcher) -> None:
    submitters, each = 4, 100
    ran: list[tuple[int, int]] = []

    def run(items: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        ran.extend(items)
        return items

    def submit_many(submitter: int) -> None:
        for item in range(each):
            batcher.submit((submitter, item))

    batcher = new_batcher(run, queue_capacity=submitters * each)
    with ThreadPoolExecutor(submitters) as threads:
        for end in [threads.submit(submit_many, number) for number in range(submitters)]:
            end.result(_PATIENCE_S)
    assert batcher.close(_PATIENCE_S)

    for submitter in range(submitters):
        assert [item for origin, item in ran if origin == submitter] == list(range(each))


def _down() -> ModelDownError:
    return ModelDownError("m")


@pytest.fixture
def batcher(device: GatedDevice) -> Iterator[Batcher[int, int]]:
    made: Batcher[int, int] = Batcher(device.run, name="m", max_batch_size=2)
    yield made
    device.open()
    assert made.close(_PATIENCE_S)


def test_the_results_of_an_abandoned_forward_are_dropped_and_its_thread_ends(
    batcher: Batcher[int, int], device: GatedDevice
) -> None:
    running = batcher.submit(1)
    device.wait_until_busy()
    batcher.abandon(_down)
    device.finish_one()
    assert batcher.close(_PATIENCE_S)
    assert isinstance(running.exception(), ModelDownError)


def test_an_abandoned_batcher_is_not_alive_and_accepts_nothing_new(batcher: Batcher[int, int]) -> None:
    batcher.abandon(_down)
    assert not batcher.alive
    with pytest.raises(ModelDownError):
        batcher.submit(1)


def test_an_item_cancelled_before_the_batcher_was_abandoned_stays_cancelled(
    batcher: Batcher[int, int], device: GatedDevice
) -> None:
    batcher.submit(1)
    device.wait_until_busy()
    gone = batcher.submit(2)
    gone.cancel()
    batcher.abandon(_down)
    assert gone.cancelled()


def test_running_seconds_are_zero_between_batches(batcher: Batcher[int, int], device: GatedDevice) -> None:
    assert batcher.running_seconds() == 0.0
    done = batcher.submit(1)
    device.wait_until_busy()
    first = batcher.running_seconds()
    assert 0 < first < batcher.running_seconds()
    device.finish_one()
    done.result(_PATIENCE_S)
    assert batcher.running_seconds() == 0.0


def test_an_exception_among_the_results_fails_its_item_alone() -> None:
    batcher: Batcher[int, int] = Batcher(
        lambda items: [ValueError("odd") if item % 2 else item * 10 for item in items], name="m"
    )
    try:
        odd, even = batcher.submit(1), batcher.submit(2)
        assert isinstance(odd.exception(_PATIENCE_S), ValueError)
        assert even.result(_PATIENCE_S).result == 20
    finally:
        batcher.close(_PATIENCE_S)
