"""Properties of batching under any mix of arrivals, cancellations and finished batches; and that idling keeps
nothing alive."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.interface.telemetry import BatchReport
from models.scheduling.batcher import Batcher

if TYPE_CHECKING:
    from tests.unit.conftest import GatedDevice

_PATIENCE_S = 30

# For each round of a busy device: whether each item that arrives during it is cancelled.
rounds = st.lists(st.lists(st.booleans(), max_size=9), min_size=1, max_size=5)


@settings(max_examples=60)
@given(
    rounds=rounds,
    max_batch_size=st.integers(1, 5),
    max_concurrent_batches=st.integers(1, 3),
    overlap_min_size=st.one_of(st.none(), st.integers(1, 5)),
)
def test_batches_partition_the_accepted_and_kept_items_in_order_none_above_the_limit(
    new_device: Callable[[], GatedDevice],
    rounds: list[list[bool]],
    max_batch_size: int,
    max_concurrent_batches: int,
    overlap_min_size: int | None,
) -> None:
    device = new_device()
    reports: list[BatchReport] = []
    batcher = Batcher(
        device.run,
        name="m",
        max_batch_size=max_batch_size,
        max_concurrent_batches=max_concurrent_batches,
        overlap_min_size=overlap_min_size,
        on_batch=reports.append,
    )
    kept: dict[int, Future[Any]] = {0: batcher.submit(0)}
    device.wait_until_busy()
    item = 0
    for cancels in rounds:
        for cancel in cancels:
            item += 1
            future = batcher.submit(item)
            if not (cancel and future.cancel()):
                # With one batch thread, which is busy, every queued item can be cancelled.
                assert not cancel or max_concurrent_batches > 1
                kept[item] = future
        if sum(map(len, device.batches)) < len(kept):
            device.finish_one()
            device.wait_until_busy()
    device.open()
    assert batcher.close(_PATIENCE_S)

    # Threads may reach the device in any order; the items of each batch are in order.
    assert [item for batch in sorted(device.batches) for item in batch] == list(kept)
    assert all(1 <= len(batch) <= max_batch_size for batch in device.batches)
    assert {item: future.result(0).result for item, future in kept.items()} == {item: item * 10 for item in kept}
    assert sorted(report.size for report in reports) == sorted(map(len, device.batches))
    assert sum(report.dropped for report in reports) <= item + 1 - len(kept)


@settings(max_examples=40)
@given(arrivals=st.integers(1, 20), max_batch_size=st.integers(1, 6))
def test_queued_items_run_in_as_few_batches_as_the_limit_allows(
    new_device: Callable[[], GatedDevice], arrivals: int, max_batch_size: int
) -> None:
    device = new_device()
    batcher = Batcher(device.run, name="m", max_batch_size=max_batch_size)
    batcher.submit(0)
    device.wait_until_busy()
    for item in range(arrivals):
        batcher.submit(item)
    device.open()
    assert batcher.close(_PATIENCE_S)

    assert len(device.batches) == 1 + -(-arrivals // max_batch_size)


class _Image:
    """A thing that can be weakly referred to."""


@pytest.mark.parametrize("fails", [False, True], ids=["after an answer", "after a failure"])
def test_an_idle_batcher_keeps_no_item_and_no_result_alive(
    monkeypatch: pytest.MonkeyPatch, new_batcher: Callable[..., Batcher[Any, Any]], *, fails: bool
) -> None:
    # pytest keeps log records, and with them the failure's frames.
    monkeypatch.setattr("models.scheduling.batcher._log.disabled", True)
    gone = threading.Semaphore(0)
    seen: list[weakref.ref[_Image]] = []

    def run(items: Sequence[_Image]) -> list[_Image]:
        results = [_Image() for _ in items]
        seen.extend(weakref.ref(image, lambda _: gone.release()) for image in (*items, *results))
        if fails:
            raise LookupError
        return results

    batcher = new_batcher(run)
    batcher.submit(_Image()).exception(_PATIENCE_S)

    # The item and its result, while the thread that ran them waits for more.
    assert gone.acquire(timeout=_PATIENCE_S)
    assert gone.acquire(timeout=_PATIENCE_S)
    assert batcher.alive
