"""Ready pixels: what a client has resized, and perhaps normalized, reaches the network as the pixels it was made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.images.decode_pool import DecodePool
from models.images.preprocessing import Transform, prepared
from models.interface.errors import UnfitPixelsError
from models.interface.request import NEVER_CANCELLED, ImageLimits, ReadyPixels

_SIDE = 16
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TRANSFORM = Transform(_SIDE, _SIDE, "bilinear", *_IMAGENET)
# Every value in every channel.
_PIXELS = np.arange(3 * 256, dtype=np.uint8).reshape(3, _SIDE, _SIDE)


def _normalized(transform: Transform) -> np.ndarray:
    mean, std = (np.array(numbers).reshape(3, 1, 1) for numbers in (transform.mean, transform.std))
    return (_PIXELS / 255 - mean) / std


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_pixels_of_any_type_are_taken_as_they_are(dtype: str) -> None:
    found = prepared(ReadyPixels(_PIXELS.astype(dtype)), _TRANSFORM)

    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last) or found.stride() == (1, 3 * _SIDE, 3)
    np.testing.assert_array_equal(found.numpy(), _PIXELS)


def test_pixels_whose_channels_come_last_are_taken_by_a_view() -> None:
    last = _PIXELS.transpose(1, 2, 0).copy()
    last.flags.writeable = False

    found = prepared(ReadyPixels(last.transpose(2, 0, 1)), _TRANSFORM)

    np.testing.assert_array_equal(found.numpy(), _PIXELS)
    assert not np.shares_memory(found.numpy(), last)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize(
    ("mean", "std"),
    [_IMAGENET, ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3), ((127 / 255,) * 3, (128 / 255,) * 3)],
)
def test_normalized_pixels_are_restored_exactly(dtype: str, mean: Any, std: Any) -> None:
    transform = Transform(_SIDE, _SIDE, "bilinear", mean, std)

    found = prepared(ReadyPixels(_normalized(transform).astype(dtype), normalized=True), transform)

    np.testing.assert_array_equal(found.numpy(), _PIXELS)


def test_normalized_bfloat16_is_restored_within_one_level() -> None:
    halves = (_normalized(_TRANSFORM).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    found = prepared(ReadyPixels(halves, normalized=True, bfloat16=True), _TRANSFORM)

    assert np.abs(found.numpy().astype(int) - _PIXELS).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -9.0, 264.0])
def test_floats_outside_the_range_are_refused(value: float) -> None:
    values = _PIXELS.astype(np.float64)
    values[1, 2, 3] = value

    with pytest.raises(UnfitPixelsError, match="0 to 255"):
        prepared(ReadyPixels(values), _TRANSFORM)


def test_overshoot_of_a_resize_is_clipped() -> None:
    values = _PIXELS.astype(np.float32)
    values[0, 0, :2] = (-8.0, 263.0)

    found = prepared(ReadyPixels(values), _TRANSFORM)

    assert found[0, 0, :2].tolist() == [0, 255]


def test_raw_pixels_where_normalized_ones_are_expected_are_refused() -> None:
    with pytest.raises(UnfitPixelsError, match=r"\(p / 255 - mean\) / std"):
        prepared(ReadyPixels(_PIXELS.astype(np.float32), normalized=True), _TRANSFORM)


@pytest.mark.parametrize("value", [-1, 256])
def test_integers_outside_0_to_255_are_refused(value: int) -> None:
    values = _PIXELS.astype(np.int16)
    values[0, 0, 0] = value

    with pytest.raises(UnfitPixelsError):
        prepared(ReadyPixels(values), _TRANSFORM)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, _SIDE, _SIDE), (3, _SIDE), (_SIDE, _SIDE, 3)])
def test_another_shape_is_refused_and_told(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnfitPixelsError, match=r"takes \[3, 16, 16\]"):
        prepared(ReadyPixels(np.zeros(shape, np.uint8)), _TRANSFORM)


def test_the_decode_pool_copies_them_in_a_thread() -> None:
    class Job:
        cancel_token = NEVER_CANCELLED

        def take_image(self) -> ReadyPixels:
            return ReadyPixels(_PIXELS)

        def put_back(self, encoded: bytes) -> None:
            raise AssertionError(encoded)

    outcomes: list[Any] = []
    pool = DecodePool(1, ImageLimits())
    pool.decode(Job(), _TRANSFORM, outcomes.append)
    assert pool.close(30)

    np.testing.assert_array_equal(outcomes[0].numpy(), _PIXELS)
