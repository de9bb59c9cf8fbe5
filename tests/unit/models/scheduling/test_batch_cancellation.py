"""Cancelled items cost no forward before their batch, and do not affect others after it has begun."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest

from models.interface.errors import OverloadedError
from models.interface.telemetry import BatchReport
from models.scheduling.batcher import Batcher, Completed

if TYPE_CHECKING:
    from tests.unit.conftest import GatedDevice

_PATIENCE_S = 30


class Image:
    """An object that supports weak references."""


NewBatcher = Callable[..., Batcher[int, int]]


def test_an_item_cancelled_before_its_batch_costs_no_forward_and_is_counted(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    reports: list[BatchReport] = []
    batcher = new_batcher(on_batch=reports.append)
    batcher.submit(1)
    device.wait_until_busy()
    futures = [batcher.submit(item) for item in (2, 3, 4, 5)]

    assert futures[0].cancel()
    assert futures[2].cancel()
    device.open()
    assert batcher.close(_PATIENCE_S)

    assert device.batches == [[1], [3, 5]]
    assert [(report.size, report.dropped) for report in reports] == [(1, 0), (2, 2)]


def test_a_cancelled_item_leaves_a_full_queue_at_once(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_batch_size=1, queue_capacity=4)
    batcher.submit(0)
    device.wait_until_busy()
    futures = [batcher.submit(item) for item in range(1, 5)]
    with pytest.raises(OverloadedError):
        batcher.submit(5)

    assert futures[1].cancel()
    assert batcher.depth == 3
    last = batcher.submit(6)
    with pytest.raises(OverloadedError):
        batcher.submit(7)

    device.open()
    assert last.result(_PATIENCE_S).result == 60
    assert device.batches == [[0], [1], [3], [4], [6]]


def test_a_cancelled_item_is_released_although_no_batch_forms(
    new_batcher: Callable[..., Batcher[Image, Image]], device: GatedDevice
) -> None:
    batcher = new_batcher(max_batch_size=1)
    batcher.submit(0)  # type: ignore[arg-type]
    device.wait_until_busy()
    image = Image()
    future, left = batcher.submit(image), weakref.ref(image)
    del image
    gc.disable()
    try:
        assert future.cancel()
        assert left() is None
    finally:
        gc.enable()


def test_a_cancelled_item_no_longer_counts_as_the_oldest(
    new_batcher: NewBatcher, device: GatedDevice, clock: list[float]
) -> None:
    batcher = new_batcher()
    batcher.submit(1)
    device.wait_until_busy()
    oldest = batcher.submit(2)
    clock[0] += 5
    batcher.submit(3)
    oldest.cancel()
    assert batcher.oldest_age_seconds() == 0


def test_the_next_item_takes_the_place_of_a_cancelled_one_in_the_batch(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_batch_size=2)
    batcher.submit(1)
    device.wait_until_busy()
    futures = [batcher.submit(item) for item in (2, 3, 4)]

    futures[0].cancel()
    device.finish_one()
    device.wait_until_busy()

    assert device.batches == [[1], [3, 4]]


def test_an_item_in_a_running_batch_cannot_be_cancelled_and_gets_its_result(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher()
    running = batcher.submit(1)
    device.wait_until_busy()

    assert not running.cancel()
    device.finish_one()

    assert running.result(_PATIENCE_S).result == 10
    assert batcher.alive


def test_a_queue_of_cancelled_items_runs_no_batch(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_batch_size=2)
    batcher.submit(1)
    device.wait_until_busy()

    for future in [batcher.submit(item) for item in range(2, 7)]:
        future.cancel()
    device.open()
    last = batcher.submit(8)

    assert last.result(_PATIENCE_S).result == 80
    assert device.batches == [[1], [8]]


def test_a_batcher_with_only_cancelled_items_closes(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher()
    batcher.submit(1)
    device.wait_until_busy()
    batcher.submit(2).cancel()

    device.open()

    assert batcher.close(_PATIENCE_S)
    assert device.batches == [[1]]


class _CancelledAtItsBatch(Future[Completed[int]]):
    """A future that reports its cancellation only when its batch forms, as that of an HTTP worker's image does."""

    def set_running_or_notify_cancel(self) -> bool:
        return False


def test_callbacks_of_a_cancelled_future_run_without_the_batchers_lock(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher()
    others_went_on: list[bool] = []

    def on_cancel(_: Future[Completed[int]]) -> None:
        other = threading.Thread(target=batcher.running_seconds, daemon=True)
        other.start()
        other.join(_PATIENCE_S)
        others_went_on.append(not other.is_alive())

    device.open()
    leaving = _CancelledAtItsBatch()
    leaving.add_done_callback(on_cancel)
    batcher.submit(1, future=leaving)
    batcher.submit(2).result(_PATIENCE_S)

    assert leaving.cancelled()
    assert others_went_on == [True]
