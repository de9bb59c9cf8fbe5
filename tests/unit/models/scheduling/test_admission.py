"""Admission: places are counted, given whole or not at all, and come back however the request ends."""

from __future__ import annotations

import asyncio

import pytest

from models.interface.errors import DrainingError, OverloadedError
from models.scheduling.admission import Admission


def _seconds_each(images: int) -> float:
    return images * 1.5


def test_a_request_holds_its_places_until_it_ends() -> None:
    admission = Admission(4, _seconds_each)

    with admission.admit(3):
        assert admission.in_flight == 3
        with admission.admit(1):
            assert admission.in_flight == 4

    assert admission.in_flight == 0


def test_a_request_gets_places_for_all_its_images_or_for_none() -> None:
    admission = Admission(4, _seconds_each)

    with admission.admit(3):
        with pytest.raises(OverloadedError), admission.admit(2):
            pass
        assert admission.in_flight == 3


def test_a_refusal_says_how_long_those_inside_are_expected_to_take() -> None:
    admission = Admission(3, _seconds_each)

    with admission.admit(3), pytest.raises(OverloadedError) as refused, admission.admit(1):
        pass

    assert refused.value.capacity == 3
    assert refused.value.retry_after_s == 5  # 4.5 s, in whole seconds


def test_a_caller_is_never_told_to_come_back_at_once() -> None:
    admission = Admission(1, lambda _images: 0.0)

    with admission.admit(1), pytest.raises(OverloadedError) as refused, admission.admit(1):
        pass

    assert refused.value.retry_after_s == 1


def test_a_request_that_fails_gives_its_places_back() -> None:
    admission = Admission(2, _seconds_each)

    with pytest.raises(LookupError), admission.admit(2):
        raise LookupError

    assert admission.in_flight == 0


def test_a_closed_house_admits_nobody_and_throws_nobody_out() -> None:
    admission = Admission(4, _seconds_each)

    with admission.admit(1):
        admission.close()
        assert admission.closed
        with pytest.raises(DrainingError), admission.admit(1):
            pass
        assert admission.in_flight == 1

    assert admission.in_flight == 0


def test_a_full_and_closed_house_says_that_it_is_closed() -> None:
    admission = Admission(1, _seconds_each)

    with admission.admit(1):
        admission.close()
        with pytest.raises(DrainingError), admission.admit(1):
            pass


@pytest.mark.anyio
async def test_who_waits_until_everybody_has_left_hears_of_the_last_and_nobody_comes_meanwhile() -> None:
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
async def test_nobody_waits_for_an_empty_building() -> None:
    admission = Admission(4, _seconds_each)
    await admission.wait_until_empty()
    assert admission.closed


def test_places_that_other_processes_have_given_away_are_taken() -> None:
    given_away = [3]
    admission = Admission(4, _seconds_each, admitted_elsewhere=lambda: given_away[0])

    with admission.admit(1):
        assert admission.full
        assert admission.in_flight == 1
        overload = admission.overload(1)
        assert overload is not None
        # All four are in the way of whoever comes back.
        assert overload.retry_after_s == 6
    given_away[0] = 2
    assert admission.overload(2) is None


def test_it_is_told_how_many_are_inside_whenever_that_changes() -> None:
    told: list[int] = []
    admission = Admission(4, _seconds_each, on_change=told.append)

    with admission.admit(3), admission.admit(1):
        pass

    assert told == [3, 4, 3, 0]
