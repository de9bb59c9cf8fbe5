"""A budget admits amounts up to its limit; Admission counts images, and admits all images of a request or none."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from models.interface.admission import Admission, Budget
from models.interface.errors import (
    AtCapacityError,
    BodyMemoryFullError,
    DecodersBusyError,
    DrainingError,
    GradlessError,
    OverloadedError,
)


def _budget(limit: int, *, overshoot: bool = False) -> Budget:
    return Budget(limit, lambda used: OverloadedError(limit, 1.5 * used), overshoot=overshoot)


def test_amounts_up_to_the_limit_are_admitted_and_one_more_is_refused() -> None:
    budget = _budget(4)
    budget.acquire(3)
    budget.acquire(1)

    with pytest.raises(OverloadedError):
        budget.acquire(1)
    assert budget.used == 4
    budget.release(4)
    assert budget.overload(4) is None
    assert budget.overload(5) is not None


def test_a_refused_amount_is_not_counted() -> None:
    budget = _budget(4)
    budget.acquire(3)

    with pytest.raises(OverloadedError):
        budget.acquire(2)
    assert budget.used == 3


def test_a_budget_with_overshoot_admits_one_amount_beyond_its_limit() -> None:
    budget = _budget(4, overshoot=True)
    budget.acquire(4)
    budget.acquire(100)

    with pytest.raises(OverloadedError):
        budget.acquire(1)


@pytest.mark.parametrize(("expected_seconds", "retry_after_s"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (59.5, 60)])
def test_retry_after_is_a_whole_number_of_seconds_and_at_least_one(expected_seconds: float, retry_after_s: int) -> None:
    for error in (OverloadedError(8, expected_seconds), DecodersBusyError(expected_seconds)):
        assert error.retry_after_s == retry_after_s
        assert str(error).endswith(f"; try again in {retry_after_s} s.")


def test_every_refusal_for_lack_of_capacity_has_retry_after() -> None:
    errors: list[GradlessError] = [OverloadedError(8, 3.0), BodyMemoryFullError(1000), DecodersBusyError(3.0)]

    assert [error.retry_after_s for error in errors if isinstance(error, AtCapacityError)] == [3, 1, 3]


def _seconds_each(images: int) -> float:
    return images * 1.5


def test_images_count_as_admitted_until_their_request_ends() -> None:
    admission = Admission(4, _seconds_each)

    with admission.admit(3):
        assert admission.in_flight == 3
        with admission.admit(1):
            assert admission.in_flight == 4

    assert admission.in_flight == 0


def test_all_images_of_a_request_are_admitted_or_none() -> None:
    admission = Admission(4, _seconds_each)

    with admission.admit(3):
        with pytest.raises(OverloadedError), admission.admit(2):
            pass
        assert admission.in_flight == 3


def test_a_refusal_has_the_expected_time_until_admitted_images_are_done() -> None:
    admission = Admission(3, _seconds_each)

    with admission.admit(3), pytest.raises(OverloadedError) as refused, admission.admit(1):
        pass

    assert refused.value.capacity == 3
    assert refused.value.retry_after_s == 5  # 4.5 s, in whole seconds


def test_the_images_of_a_failed_request_no_longer_count() -> None:
    admission = Admission(2, _seconds_each)

    with pytest.raises(LookupError), admission.admit(2):
        raise LookupError

    assert admission.in_flight == 0


def test_a_closed_admission_refuses_new_images_and_keeps_admitted_ones() -> None:
    admission = Admission(4, _seconds_each)

    with admission.admit(1):
        admission.close()
        with pytest.raises(DrainingError), admission.admit(1):
            pass
        assert admission.in_flight == 1

    assert admission.in_flight == 0


def test_a_closed_admission_at_capacity_raises_draining() -> None:
    admission = Admission(1, _seconds_each)

    with admission.admit(1):
        admission.close()
        with pytest.raises(DrainingError), admission.admit(1):
            pass


@pytest.mark.anyio
async def test_waiting_until_empty_ends_with_the_last_image_and_admits_no_new_one() -> None:
    admission = Admission(4, _seconds_each)
    with admission.admit(1):
        with admission.admit(2):
            waiting = asyncio.create_task(admission.wait_until_empty())
            await asyncio.sleep(0)
            with pytest.raises(DrainingError), admission.admit(1):
                pass
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


@pytest.mark.anyio
async def test_waiting_until_empty_returns_at_once_without_admitted_images() -> None:
    admission = Admission(4, _seconds_each)
    await admission.wait_until_empty()
    with pytest.raises(DrainingError), admission.admit(1):
        pass


def test_images_admitted_by_other_processes_count() -> None:
    given_away = [3]
    admission = Admission(4, _seconds_each, admitted_elsewhere=lambda: given_away[0])

    with admission.admit(1):
        assert admission.half_full
        assert admission.in_flight == 1
        overload = admission.overload(1)
        assert overload is not None
        # Images of all processes count.
        assert overload.retry_after_s == 6
    given_away[0] = 2
    assert admission.overload(2) is None


def test_every_change_of_the_admitted_images_is_reported() -> None:
    reported: list[int] = []
    admission = Admission(4, _seconds_each, on_change=reported.append)

    with admission.admit(3), admission.admit(1):
        pass

    assert reported == [3, 4, 3, 0]


@pytest.mark.anyio
async def test_announced_images_count_for_later_heads_until_the_next_iteration() -> None:
    admission = Admission(4, _seconds_each)
    with admission.admit(2):
        refusals = [admission.announce() for _ in range(4)]
        assert [refusal is None for refusal in refusals] == [True, True, False, False]
        # The announced images themselves have room.
        with admission.admit(2):
            pass
        await asyncio.sleep(0)
        assert admission.announce() is None


def test_it_is_freed_with_its_last_user_because_it_keeps_the_model() -> None:
    admission = Admission(1, _seconds_each)
    freed = weakref.ref(admission)
    gc.disable()
    try:
        del admission
        assert freed() is None
    finally:
        gc.enable()
