"""models/offline/survey.py: mean and deviation of a survey equal NumPy's of all pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from models.offline.survey import Survey, Surveyed

Picture = NDArray[np.uint8]

_PICTURES = st.lists(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))), min_size=1, max_size=8
)


def _survey(pictures: Sequence[Picture], times: int = 1) -> Survey:
    found = Survey()
    for picture in pictures:
        histogram = np.stack([np.bincount(picture[..., channel].ravel(), minlength=256) for channel in range(3)])
        found.add("", Surveyed("PNG", picture.shape[1], picture.shape[0], histogram * times))
    return found


@given(_PICTURES)
def test_mean_and_deviation_are_those_of_all_pixels(pictures: list[Picture]) -> None:
    found = _survey(pictures)
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures]).astype(np.float64) / 255

    assert found.pixels == len(pixels)
    assert found.mean == pytest.approx(pixels.mean(axis=0).tolist(), abs=1e-12)
    assert found.std == pytest.approx(pixels.std(axis=0).tolist(), abs=1e-7)


def test_large_images_count_more_than_small_ones() -> None:
    found = _survey([np.zeros((30, 30, 3), np.uint8), np.full((10, 10, 3), 255, np.uint8)])

    assert found.mean == pytest.approx([0.1] * 3)
    # The mean of the pictures' own deviations would be 0.
    assert found.std == pytest.approx([0.3] * 3)


def test_trillions_of_pixels_of_nearly_one_value_keep_their_deviation() -> None:
    picture = np.full((100, 100, 3), 254, np.uint8)
    picture[0, 0] = 255
    many = _survey([picture], times=2**30)

    assert many.pixels == 10_000 * 2**30
    # What the textbook's formula, the mean of squares less the square of the mean, loses in float32 entirely.
    assert many.std == pytest.approx([np.sqrt(0.0001 * 0.9999) / 255] * 3, rel=1e-12)
