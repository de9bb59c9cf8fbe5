"""An error in a batch fails each of its items, and does not end the batch thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from models.interface.errors import ForwardError, OverloadedError
from models.interface.request import AllCancelledError
from models.interface.telemetry import BatchReport
from models.scheduling.batcher import Batcher

if TYPE_CHECKING:
    from tests.unit.conftest import GatedDevice

_PATIENCE_S = 30

NewBatcher = Callable[..., Batcher[Any, Any]]


@pytest.fixture
def failing_together(new_batcher: NewBatcher) -> Callable[[], list[Future[Any]]]:
    """Run one batch of three that fails, and give its futures."""

    def run(items: Sequence[int]) -> list[int]:
        if 0 in items:
            raise LookupError("no such kernel")
        return list(items)

    def submit_three() -> list[Future[Any]]:
        batcher = new_batcher(run, max_batch_size=3, max_batch_delay_s=1000.0)
        return [batcher.submit(item) for item in (0, 1, 2)]

    return submit_three


def test_each_item_of_a_failing_batch_has_its_own_error(
    failing_together: Callable[[], list[Future[Any]]],
) -> None:
    errors = [future.exception(_PATIENCE_S) for future in failing_together()]

    assert all(isinstance(error, ForwardError) for error in errors)
    assert len({id(error) for error in errors}) == 3


def test_the_error_names_the_failure_and_the_model(failing_together: Callable[[], list[Future[Any]]]) -> None:
    with pytest.raises(ForwardError, match="forward of m failed: LookupError: no such kernel"):
        failing_together()[1].result(_PATIENCE_S)


def test_the_thread_goes_on_after_a_failing_batch(new_batcher: NewBatcher) -> None:
    reports: list[BatchReport] = []

    def run(items: Sequence[int]) -> list[float]:
        return [1 / item for item in items]

    batcher = new_batcher(run, on_batch=reports.append)

    assert isinstance(batcher.submit(0).exception(_PATIENCE_S), ForwardError)
    assert batcher.alive
    assert batcher.submit(2).result(_PATIENCE_S).result == 0.5
    assert batcher.close(_PATIENCE_S)
    assert len(reports) == 2


def test_the_items_of_a_batch_that_raises_system_exit_have_errors(new_batcher: NewBatcher) -> None:
    def leave(_items: Sequence[int]) -> list[int]:
        raise SystemExit

    future = new_batcher(leave).submit(1)

    # Not _PATIENCE_S: a thread that has ended never answers.
    assert isinstance(future.exception(5), ForwardError)


@pytest.mark.parametrize("results", [[], [1, 2], None], ids=["too few", "too many", "none"])
def test_a_wrong_number_of_results_fails_every_item(new_batcher: NewBatcher, results: list[int] | None) -> None:
    batcher = new_batcher(lambda _items: results)

    assert isinstance(batcher.submit(1).exception(_PATIENCE_S), ForwardError)
    assert batcher.alive


def test_an_error_in_on_batch_does_not_end_the_thread(new_batcher: NewBatcher, device: GatedDevice) -> None:
    def refuse(report: BatchReport) -> None:
        raise ValueError(report)

    device.open()
    batcher = new_batcher(on_batch=refuse)

    assert [batcher.submit(item).result(_PATIENCE_S).result for item in (1, 2, 3)] == [10, 20, 30]


def test_items_are_answered_before_on_batch_is_called(new_batcher: NewBatcher) -> None:
    called, go_on = threading.Event(), threading.Event()

    def listen(_report: BatchReport) -> None:
        called.set()
        go_on.wait(_PATIENCE_S)

    batcher = new_batcher(lambda items: items, on_batch=listen)
    future = batcher.submit(1)
    assert called.wait(_PATIENCE_S)

    assert future.done()
    go_on.set()


def test_a_full_queue_raises_overloaded_with_its_capacity(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(queue_capacity=2)
    running = batcher.submit(1)
    device.wait_until_busy()
    waiting = [batcher.submit(2), batcher.submit(3)]

    with pytest.raises(OverloadedError) as refused:
        batcher.submit(4)
    device.open()

    assert refused.value.capacity == 2
    assert [future.result(_PATIENCE_S).result for future in (running, *waiting)] == [10, 20, 30]


def test_a_refused_item_is_not_queued(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(queue_capacity=1)
    batcher.submit(1)
    device.wait_until_busy()
    batcher.submit(2)
    for _ in range(3):
        with pytest.raises(OverloadedError):
            batcher.submit(3)
    device.finish_one()
    device.wait_until_busy()

    batcher.submit(4)
    device.open()
    assert batcher.close(_PATIENCE_S)

    assert device.batches == [[1], [2], [4]]


def test_a_cancelled_batch_is_no_failure_and_does_not_change_the_pace(
    new_batcher: NewBatcher, caplog: pytest.LogCaptureFixture
) -> None:
    def run(items: Sequence[int]) -> list[int]:
        if 0 in items:
            raise AllCancelledError
        return list(items)

    batcher = new_batcher(run)
    batcher.submit(1).result(_PATIENCE_S)
    pace = batcher.expected_seconds(1)
    error = batcher.submit(0).exception(_PATIENCE_S)

    assert isinstance(error, AllCancelledError)
    assert batcher.expected_seconds(1) == pace
    assert not caplog.records
    assert batcher.submit(2).result(_PATIENCE_S).result == 2
