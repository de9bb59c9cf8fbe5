"""A difference in time is claimed only if paired rounds show it."""

from __future__ import annotations

from random import Random

import pytest

from gradless.sentences import time_difference, time_verdict


def test_fewer_than_eight_rounds_show_no_difference() -> None:
    assert time_verdict([1.0] * 7, [2.0] * 7) == "no difference shown"
    assert time_verdict([1.0] * 8, [2.0] * 8) == "less"
    assert time_verdict([3.0] * 8, [2.0] * 8) == "more"


def test_rounds_are_compared_in_pairs() -> None:
    # The machine gets slower from round to round, by more than the difference.
    slower = [float(number) for number in range(1, 9)]
    assert time_verdict(slower, [each * 1.1 for each in slower]) == "less"


@pytest.mark.parametrize("rounds", [8, 9, 10, 12, 16, 50])
def test_identical_arms_are_said_to_differ_in_one_of_a_hundred_comparisons_at_most(rounds: int) -> None:
    randoms, claims, comparisons = Random(rounds), 0, 5000  # noqa: S311 - reproducible

    def seconds(level: float) -> float:
        return level * randoms.lognormvariate(0, 0.3)

    for _ in range(comparisons):
        levels = [randoms.lognormvariate(0, 0.5) for _ in range(rounds)]
        one, other = [seconds(level) for level in levels], [seconds(level) for level in levels]
        claims += time_verdict(one, other) != "no difference shown"
    # Two standard deviations above one in a hundred.
    assert claims / comparisons <= 0.01 + 2 * (0.01 / comparisons) ** 0.5


def test_a_small_difference_is_not_claimed_however_steady() -> None:
    # Entering inference_mode takes microseconds more than entering grad mode, whatever the network does then.
    assert time_verdict([60e-6] * 50, [50e-6] * 50) == "no difference shown"
    assert time_verdict([50e-6] * 50, [62e-6] * 50) == "less"
    assert time_verdict([1.01] * 50, [1.0] * 50) == "no difference shown"
    assert time_verdict([1.03] * 50, [1.0] * 50) == "more"


def test_no_figure_is_named_without_a_difference() -> None:
    assert time_difference(2.0, 1.0, "less", 12) == "100% more with gradients"
    assert time_difference(1.0, 2.0, "more", 12) == "50% less with gradients"
    assert time_difference(2.0, 1.0, "no difference shown", 12) == "12 rounds do not show a difference"
    # Medians that contradict the pairs.
    assert time_difference(1.0, 2.0, "less", 12) == "12 rounds do not show a difference"
