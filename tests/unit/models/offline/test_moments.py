"""Moments: merged from parts, they equal NumPy's of all pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from models.offline.survey import Moments

Picture = NDArray[np.uint8]

_PICTURES = st.lists(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))), min_size=1, max_size=8
)


def _merged(*pictures: Picture) -> Moments:
    return reduce(Moments.merged, map(Moments.of, pictures), Moments.none())


def _of_the_whole(pictures: Sequence[Picture]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures]).astype(np.float64) / 255
    return pixels.mean(axis=0), pixels.std(axis=0)


def _assert_same(found: Moments, pictures: Sequence[Picture]) -> None:
    mean, std = _of_the_whole(pictures)
    assert found.count == sum(picture.size // 3 for picture in pictures)
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert found.std == pytest.approx(std, abs=1e-7)


@given(_PICTURES)
def test_merged_moments_are_those_of_all_pixels(pictures: list[Picture]) -> None:
    _assert_same(_merged(*pictures), pictures)


@given(_PICTURES, st.data())
def test_merging_is_associative_and_commutative(pictures: list[Picture], data: st.DataObject) -> None:
    parts = [Moments.of(picture) for picture in pictures]
    while len(parts) > 1:
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(first.merged(second))

    _assert_same(parts[0], pictures)


def test_large_images_count_more_than_small_ones() -> None:
    black, white = np.zeros((30, 30, 3), np.uint8), np.full((10, 10, 3), 255, np.uint8)

    found = _merged(black, white)

    assert found.mean == pytest.approx([0.1] * 3)
    # The mean of the pictures' own deviations would be 0.
    assert found.std == pytest.approx([0.3] * 3)


def test_channels_are_separate() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:2, :, 1] = 255
    picture[..., 2] = 51

    found = Moments.of(picture)

    assert found.mean.tolist() == pytest.approx([0, 0.5, 0.2])
    assert found.std.tolist() == [0, 0.5, 0]


def test_billions_of_pixels_of_nearly_one_value_keep_their_deviation() -> None:
    picture = np.full((100, 100, 3), 254, np.uint8)
    picture[0, 0] = 255
    one = Moments.of(picture)

    many = one
    for _ in range(30):
        many = many.merged(many)

    assert many.count == one.count * 2**30
    assert many.std == pytest.approx(one.std, rel=1e-12)
    # What the textbook's formula, the mean of squares less the square of the mean, loses in float32 entirely.
    assert one.std == pytest.approx([np.sqrt(0.0001 * 0.9999) / 255] * 3, rel=1e-12)


def test_no_pixels_have_no_deviation() -> None:
    assert np.isnan(Moments.none().std).all()
    assert Moments.none().merged(Moments.none()).count == 0
    assert _merged(np.full((2, 2, 3), 51, np.uint8)).mean == pytest.approx([0.2] * 3)
