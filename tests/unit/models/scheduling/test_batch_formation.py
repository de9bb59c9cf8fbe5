"""Batch formation: an idle device takes the queue at once, a busy one finds its next batch queued."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from models.interface.telemetry import BatchReport
from models.scheduling.batcher import Batcher

if TYPE_CHECKING:
    from tests.unit.conftest import GatedDevice

_PATIENCE_S = 30
_HOURS = 10_000.0

NewBatcher = Callable[..., Batcher[int, int]]


def test_an_idle_device_takes_a_single_item_at_once(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_batch_size=8)

    batcher.submit(1)
    device.wait_until_busy()

    assert device.batches == [[1]]


def test_items_that_arrive_while_the_device_is_busy_form_the_next_batch(
    new_batcher: NewBatcher, device: GatedDevice
) -> None:
    batcher = new_batcher(max_batch_size=8)
    batcher.submit(1)
    device.wait_until_busy()

    for item in (2, 3, 4):
        batcher.submit(item)
    assert batcher.depth == 3
    device.finish_one()
    device.wait_until_busy()

    assert device.batches == [[1], [2, 3, 4]]
    assert batcher.depth == 0


def test_a_result_has_its_queue_seconds_and_its_batch(
    new_batcher: NewBatcher, device: GatedDevice, clock: list[float]
) -> None:
    batcher = new_batcher(max_batch_size=2)
    batcher.submit(1)
    device.wait_until_busy()
    second = batcher.submit(2)
    clock[0] += 3
    third = batcher.submit(3)
    assert batcher.oldest_age_seconds() == 3.0
    clock[0] += 1
    device.finish_one()
    device.wait_until_busy()
    clock[0] += 5
    device.finish_one()

    waited = [future.result(_PATIENCE_S) for future in (second, third)]

    assert [(each.result, each.queue_seconds) for each in waited] == [(20, 4.0), (30, 1.0)]
    assert {(each.batch.forward_seconds, each.batch.size) for each in waited} == {(5.0, 2)}
    assert batcher.oldest_age_seconds() == 0.0


def test_expected_seconds_follow_the_pace_of_recent_batches(new_batcher: NewBatcher, clock: list[float]) -> None:
    batch_seconds = iter([4.0, 14.0])

    def run(items: list[int]) -> list[int]:
        clock[0] += next(batch_seconds)
        return items

    batcher = new_batcher(run, max_batch_size=2, max_batch_delay_s=_HOURS)
    assert batcher.expected_seconds(5) == 0.0
    for _ in range(2):
        for future in [batcher.submit(1), batcher.submit(2)]:
            future.result(_PATIENCE_S)
    assert batcher.close(_PATIENCE_S)

    # 2 s an item, then a fifth of the way to 7 s an item.
    assert batcher.expected_seconds(2) == pytest.approx(6.0)


def test_a_delayed_batch_starts_when_it_is_full(new_batcher: NewBatcher, device: GatedDevice) -> None:
    batcher = new_batcher(max_batch_size=3, max_batch_delay_s=_HOURS)
    for item in (1, 2):
        batcher.submit(item)
    assert device.batches == []

    batcher.submit(3)
    device.wait_until_busy()

    assert device.batches == [[1, 2, 3]]


def test_the_batching_delay_is_measured_from_the_arrival_of_the_oldest_item(
    new_batcher: NewBatcher, device: GatedDevice, clock: list[float]
) -> None:
    batcher = new_batcher(max_batch_size=2, max_batch_delay_s=_HOURS)
    for item in (1, 2, 3):
        batcher.submit(item)
    device.wait_until_busy()

    clock[0] += _HOURS
    device.finish_one()
    device.wait_until_busy()

    assert device.batches == [[1, 2], [3]]


def test_a_single_item_runs_when_the_batching_delay_is_over(new_batcher: NewBatcher, device: GatedDevice) -> None:
    device.open()
    batcher = new_batcher(max_batch_size=2, max_batch_delay_s=0.01)

    assert batcher.submit(1).result(_PATIENCE_S).result == 10


@pytest.mark.parametrize(
    ("options", "items", "trigger"),
    [
        ({"max_batch_size": 2}, 1, "idle"),
        ({"max_batch_size": 2}, 2, "full"),
        ({"max_batch_size": 2, "max_batch_delay_s": _HOURS}, 2, "full"),
        ({"max_batch_size": 2, "max_batch_delay_s": 0.001}, 1, "wait"),
    ],
)
def test_a_report_names_the_trigger_of_its_batch(
    new_batcher: NewBatcher, device: GatedDevice, options: dict[str, float], items: int, trigger: str
) -> None:
    reports: list[BatchReport] = []
    # A first batch, full under every option, keeps the device busy until all items wait.
    batcher = new_batcher(on_batch=reports.append, **options)
    for item in range(2):
        batcher.submit(item)
    device.wait_until_busy()
    if device.batches == [[0]]:
        device.finish_one()
        device.wait_until_busy()

    futures = [batcher.submit(item) for item in range(items)]
    device.open()
    for future in futures:
        future.result(_PATIENCE_S)
    assert batcher.close(_PATIENCE_S)

    assert (reports[-1].instance.model, reports[-1].size, reports[-1].trigger) == ("m", items, trigger)


def test_batches_of_a_closing_batcher_have_the_trigger_drain(new_batcher: NewBatcher, device: GatedDevice) -> None:
    reports: list[BatchReport] = []
    batcher = new_batcher(on_batch=reports.append, max_batch_size=8)
    batcher.submit(1)
    device.wait_until_busy()
    batcher.submit(2)

    assert not batcher.close(timeout_s=0)
    device.open()
    assert batcher.close(_PATIENCE_S)

    assert [report.trigger for report in reports] == ["idle", "drain"]


def test_the_prepared_thread_runs_every_batch(new_batcher: NewBatcher) -> None:
    seen: list[int] = []

    def note_thread() -> None:
        seen.append(threading.get_ident())

    def run(items: list[int]) -> list[int]:
        note_thread()
        return items

    batcher = new_batcher(run, prepare=note_thread)
    for item in range(3):
        batcher.submit(item).result(_PATIENCE_S)

    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert seen[0] != threading.get_ident()
