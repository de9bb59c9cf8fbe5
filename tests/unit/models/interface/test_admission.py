"""One policy decides on every 429, and one function computes every Retry-After."""

from __future__ import annotations

import pytest

from models.interface.admission import Budget
from models.interface.errors import (
    AtCapacityError,
    BodyMemoryFullError,
    DecodersBusyError,
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
