"""Properties of device time, under any order in which batches begin and end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scheduling.running_batches import RunningBatch, RunningBatches

_FULL = 4

# Each a step of time, and then either the size of a batch that begins, or which of those under way ends.
steps = st.lists(
    st.tuples(st.floats(0.001, 10), st.one_of(st.integers(1, _FULL), st.integers(-9, -1))), min_size=1, max_size=30
)


def _begun(batches: RunningBatches[RunningBatch], size: int, at: float) -> RunningBatch:
    batch = RunningBatch(at, batches.allows_overlap(size))
    batches.begin(batch)
    return batch


@given(steps=steps, overlap_min_size=st.one_of(st.none(), st.integers(1, _FULL)))
def test_the_busy_seconds_of_all_batches_add_up_to_the_time_in_which_any_ran(
    steps: list[tuple[float, int]], overlap_min_size: int | None
) -> None:
    batches: RunningBatches[RunningBatch] = RunningBatches(full_size=_FULL, overlap_min_size=overlap_min_size)
    running: list[RunningBatch] = []
    now, busy, reported = 100.0, 0.0, 0.0
    for step, what in [*steps, *[(1.0, -1)] * len(steps)]:
        now += step
        busy += step if running else 0.0
        if what > 0:
            running.append(_begun(batches, what, now))
        elif running:
            seconds = batches.end(running.pop(what % len(running)), now)
            assert seconds >= 0
            reported += seconds
    assert not running
    assert reported == pytest.approx(busy)


@given(sizes=st.lists(st.integers(1, _FULL), max_size=6), overlap_min_size=st.one_of(st.none(), st.integers(1, _FULL)))
def test_no_overlap_alongside_a_full_batch_or_without_an_overlap_size(
    sizes: list[int], overlap_min_size: int | None
) -> None:
    batches: RunningBatches[RunningBatch] = RunningBatches(full_size=_FULL, overlap_min_size=overlap_min_size)
    assert batches.may_start
    for size in sizes:
        _begun(batches, size, 1.0)
    if sizes and (overlap_min_size is None or _FULL in sizes):
        assert not batches.may_start


def test_a_cleared_batch_does_not_run_and_its_end_does_not_affect_others() -> None:
    batches: RunningBatches[RunningBatch] = RunningBatches(full_size=_FULL, overlap_min_size=None)
    removed = _begun(batches, 1, 100.0)
    assert removed in batches
    assert batches.clear() == [removed]
    assert removed not in batches
    after = _begun(batches, 1, 101.0)
    assert batches.end(removed, 102.0) == pytest.approx(2)
    assert after in batches
    assert after.began_at == 101.0
