"""Nobody's many items keep out somebody's one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.scheduling.batcher import Batcher
from models.scheduling.fair_queue import FairQueue

if TYPE_CHECKING:
    from tests.unit.conftest import GatedDevice


def drained(queue: FairQueue[tuple[str, int]]) -> list[tuple[str, int]]:
    return [queue.popleft() for _ in range(len(queue))]


def test_callers_of_one_entry_are_served_in_order_of_arrival() -> None:
    queue = FairQueue[tuple[str, int]]()
    for caller in "abcd":
        queue.append(caller, (caller, 0), caller)
    assert [caller for caller, _ in drained(queue)] == list("abcd")


def test_a_caller_of_one_waits_for_one_entry_of_a_caller_of_many() -> None:
    queue = FairQueue[tuple[str, int]]()
    for number in range(64):
        queue.append(number, ("many", number), "many")
    queue.append("one", ("one", 0), "one")
    assert drained(queue)[:3] == [("many", 0), ("one", 0), ("many", 1)]


def test_an_empty_queue_has_nothing_to_give() -> None:
    with pytest.raises(IndexError):
        FairQueue[int]().popleft()


def test_a_removed_entry_takes_its_callers_turn_with_it_only_if_it_was_the_last() -> None:
    queue = FairQueue[tuple[str, int]]()
    for number, caller in enumerate("aabb"):
        queue.append(number, (caller, number), caller)
    assert queue.remove(0)
    assert not queue.remove(0)
    assert queue.remove(2)
    assert queue.remove(3)
    queue.append(4, ("c", 4), "c")
    assert len(queue) == 2
    assert drained(queue) == [("a", 1), ("c", 4)]
    assert not queue.remove(1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_what_is_left_after_removals_comes_out_as_if_the_removed_had_never_come(
    arrivals: list[tuple[str, bool]],
) -> None:
    queue, never_held = FairQueue[tuple[str, int]](), FairQueue[tuple[str, int]]()
    for number, (caller, leaves) in enumerate(arrivals):
        queue.append(number, (caller, number), caller)
        if leaves:
            assert queue.remove(number)
        else:
            never_held.append(number, (caller, number), caller)
    assert len(queue) == len(never_held)
    assert drained(queue) == drained(never_held)


@given(st.lists(st.sampled_from("abc")))
def test_everything_comes_out_once_and_each_callers_in_order(callers: list[str]) -> None:
    queue = FairQueue[tuple[str, int]]()
    for number, caller in enumerate(callers):
        queue.append(number, (caller, number), caller)
    if callers:
        assert min(number for _, number in queue.firsts()) == 0
    found = drained(queue)
    assert sorted(found, key=lambda entry: entry[1]) == [(caller, number) for number, caller in enumerate(callers)]
    by_caller = defaultdict(list)
    for caller, number in found:
        by_caller[caller].append(number)
    assert all(numbers == sorted(numbers) for numbers in by_caller.values())


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_no_caller_is_served_twice_while_another_waits_for_its_turn(callers: list[str]) -> None:
    queue = FairQueue[tuple[str, int]]()
    for number, caller in enumerate(callers):
        queue.append(number, (caller, number), caller)
    waiting = {caller: callers.count(caller) for caller in set(callers)}
    served: dict[str, int] = defaultdict(int)
    for caller, _ in drained(queue):
        served[caller] += 1
        waiting[caller] -= 1
        assert all(served[other] >= served[caller] - 1 for other, left in waiting.items() if left)


def test_a_request_of_many_images_leaves_a_place_in_the_next_batch_to_a_request_of_one(
    new_device: Callable[[], GatedDevice],
) -> None:
    device = new_device()
    batcher = Batcher(
        device.run, name="m", max_batch_size=8, fairness_key=lambda item: "many" if 0 <= item < 64 else item
    )
    batcher.submit(-1)
    device.wait_until_busy()
    for item in range(64):
        batcher.submit(item)
    batcher.submit(1000)
    device.open()
    assert batcher.close(30)
    assert 1000 in device.batches[1]
