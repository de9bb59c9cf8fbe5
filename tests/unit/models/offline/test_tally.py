"""Tally: the figures follow their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.offline.evaluation import ClassScore, Confusion, Tally

LABELS = [f"class {index}" for index in range(8)]


def add(tally: Tally, path: str, truth: int, *scored: tuple[int, float]) -> None:
    indices, probabilities = zip(*scored, strict=True)
    tally.add(path, truth, np.array(indices), np.array(probabilities, dtype=np.float32))


@pytest.fixture
def tally() -> Tally:
    """Two of three right; the third took class 0 for class 1 and had the truth in second place."""
    counted = Tally(LABELS)
    add(counted, "a", 0, (0, 0.9), (1, 0.05))
    add(counted, "b", 1, (1, 0.6), (0, 0.2))
    add(counted, "c", 0, (1, 0.5), (0, 0.25))
    return counted


def test_shares_classes_and_confusions_are_counted(tally: Tally) -> None:
    found = tally.evaluation("m", "f", without_answer=4)
    assert (found.images, found.without_answer) == (3, 4)
    assert (found.top1, found.top5) == (pytest.approx(2 / 3), 1)
    assert found.classes == [
        ClassScore(0, "class 0", images=2, first=1, among_five=2, taken=1),
        ClassScore(1, "class 1", images=1, first=1, among_five=1, taken=2),
    ]
    assert found.confusions == [Confusion("class 0", "class 1", images=1, of=2)]


def test_a_mistake_has_the_rank_of_the_true_class(tally: Tally) -> None:
    add(tally, "d", 5, (1, 0.75), (2, 0.125))
    confident, other = tally.evaluation("m", "f", without_answer=0).mistakes
    assert (confident.path, confident.truth, confident.taken_for) == ("d", "class 5", "class 1")
    assert (confident.probability, confident.rank, confident.truth_probability) == (0.75, None, None)
    assert (other.path, other.rank, other.truth_probability) == ("c", 2, 0.25)


def test_only_the_most_confident_mistakes_are_kept(tally: Tally) -> None:
    for number in range(100):
        add(tally, f"{number:02}", 3, (4, number / 100), (3, 0.0))
    kept = [mistake.probability for mistake in tally.evaluation("m", "f", without_answer=0).mistakes]
    assert kept == pytest.approx([number / 100 for number in range(99, 75, -1)])


def test_the_confusions_are_the_ten_most_frequent(tally: Tally) -> None:
    for taken_for in range(8):
        for number in range(taken_for):
            add(tally, f"{taken_for} {number}", 7, (taken_for, 0.5), (6, 0.25))
            add(tally, f"{taken_for} {number}", 6, (taken_for, 0.5), (7, 0.25))
    found = tally.evaluation("m", "f", without_answer=0).confusions
    assert len(found) == 10
    assert [confusion.images for confusion in found] == sorted((c.images for c in found), reverse=True)
    assert found[0].images == 7


def test_without_images_all_figures_are_zero() -> None:
    found = Tally(LABELS).evaluation("m", "f", without_answer=1)
    assert (found.images, found.top1, found.top5, found.calibration_error, found.classes) == (0, 0, 0, 0, [])


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_follows_its_definition(answers: list[tuple[float, bool]]) -> None:
    tally = Tally(LABELS)
    for number, (probability, right) in enumerate(answers):
        add(tally, str(number), 0 if right else 1, (0, probability), (2, 0.0))
    expected = 0.0
    for place in range(15):
        # The lowest bin includes 0.
        lower, upper = (-1.0 if place == 0 else place / 15), (place + 1) / 15
        inside = [(p, right) for p, right in answers if lower < p <= upper]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            expected += len(inside) / len(answers) * abs(accuracy - confidence)
    assert tally.evaluation("m", "f", without_answer=0).calibration_error == pytest.approx(expected, abs=1e-6)
