"""Admission counts images, admits all images of a request or none, and releases them however the request ends."""

from __future__ import annotations

import asyncio

import pytest

from models.interface.errors import DrainingError, OverloadedError
from models.scheduling.admission import Admission


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


def test_retry_after_is_at_least_one_second() -> None:
    admission = Admission(1, lambda _images: 0.0)

    with admission.admit(1), pytest.raises(OverloadedError) as refused, admission.admit(1):
        pass

    assert refused.value.retry_after_s == 1


def test_the_images_of_a_failed_request_no_longer_count() -> None:
    admission = Admission(2, _seconds_each)

    with pytest.raises(LookupError), admission.admit(2):
        raise LookupError

    assert admission.in_flight == 0


def test_a_closed_admission_refuses_new_images_and_keeps_admitted_ones() -> None:
    admission = Admission(4, _seconds_each)

    with admission.admit(1):
        admission.close()
        assert admission.closed
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
    assert admission.closed


def test_images_admitted_by_other_processes_count() -> None:
    given_away = [3]
    admission = Admission(4, _seconds_each, admitted_elsewhere=lambda: given_away[0])

    with admission.admit(1):
        assert admission.full
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
