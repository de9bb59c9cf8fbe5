"""An abandoned batcher fails each item with its own error, and drops late results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from models.interface.errors import ModelDownError
from models.scheduling.batcher import Batcher

if TYPE_CHECKING:
    from tests.unit.conftest import GatedDevice

_PATIENCE_S = 30


def _down() -> ModelDownError:
    return ModelDownError("m")


@pytest.fixture
def batcher(device: GatedDevice) -> Iterator[Batcher[int, int]]:
    made: Batcher[int, int] = Batcher(device.run, name="m", max_batch_size=2)
    yield made
    device.open()
    assert made.close(_PATIENCE_S)


def test_running_and_queued_items_each_have_their_own_error(batcher: Batcher[int, int], device: GatedDevice) -> None:
    running = batcher.submit(1)
    device.wait_until_busy()
    waiting = [batcher.submit(item) for item in (2, 3, 4)]
    batcher.abandon(_down)
    errors = [future.exception(_PATIENCE_S) for future in (running, *waiting)]
    assert all(isinstance(error, ModelDownError) for error in errors)
    assert len(set(map(id, errors))) == 4


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
