"""Properties of the time on a device, under any order in which batches begin and end beside one another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scheduling.in_flight import InFlight, RunningBatch

_FULL = 4

# Each a step of time, and then either the size of a batch that begins, or which of those under way ends.
steps = st.lists(
    st.tuples(st.floats(0.001, 10), st.one_of(st.integers(1, _FULL), st.integers(-9, -1))), min_size=1, max_size=30
)


def _begun(occupancy: InFlight[RunningBatch], size: int, at: float) -> RunningBatch:
    stay = RunningBatch(at, occupancy.would_leave_room(size))
    occupancy.begin(stay)
    return stay


@given(steps=steps, room_from=st.one_of(st.none(), st.integers(1, _FULL)))
def test_the_seconds_that_batches_are_told_of_add_up_to_those_in_which_one_was_under_way(
    steps: list[tuple[float, int]], room_from: int | None
) -> None:
    occupancy: InFlight[RunningBatch] = InFlight(full_size=_FULL, room_from=room_from)
    under_way: list[RunningBatch] = []
    now, busy, told = 100.0, 0.0, 0.0
    for step, what in [*steps, *[(1.0, -1)] * len(steps)]:
        now += step
        busy += step if under_way else 0.0
        if what > 0:
            under_way.append(_begun(occupancy, what, now))
        elif under_way:
            seconds = occupancy.end(under_way.pop(what % len(under_way)), now)
            assert seconds >= 0
            told += seconds
    assert not under_way
    assert told == pytest.approx(busy)


@given(sizes=st.lists(st.integers(1, _FULL), max_size=6), room_from=st.one_of(st.none(), st.integers(1, _FULL)))
def test_there_is_no_room_beside_a_full_batch_nor_where_no_batch_leaves_any(
    sizes: list[int], room_from: int | None
) -> None:
    occupancy: InFlight[RunningBatch] = InFlight(full_size=_FULL, room_from=room_from)
    assert occupancy.has_room
    for size in sizes:
        _begun(occupancy, size, 1.0)
    if sizes and (room_from is None or _FULL in sizes):
        assert not occupancy.has_room


def test_a_batch_given_up_is_not_under_way_and_its_end_moves_no_other() -> None:
    occupancy: InFlight[RunningBatch] = InFlight(full_size=_FULL, room_from=None)
    given_up = _begun(occupancy, 1, 100.0)
    assert given_up in occupancy
    assert occupancy.clear() == [given_up]
    assert given_up not in occupancy
    after = _begun(occupancy, 1, 101.0)
    assert occupancy.end(given_up, 102.0) == pytest.approx(2)
    assert after in occupancy
    assert after.began_at == 101.0
