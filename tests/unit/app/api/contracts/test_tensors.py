"""The tensors of the Open Inference Protocol: every form gives the images that were sent, and false sizes are refused
before anything is allocated."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.api.contracts.tensors import (
    BYTES,
    Tensor,
    array_of_numbers,
    count_images,
    flat_values,
    images_of_tensor,
    is_text,
    join_elements,
    split_elements,
)
from app.http.problems import InvalidInputError, NoImagesError, TooManyImagesError
from models.interface.request import ReadyPixels

_SIDE = 4
_LIMIT = 8
_DTYPES = {"UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT16": "i2", "INT32": "i4", "INT64": "i8"}
_DTYPES |= {"FP16": "f2", "FP32": "f4", "FP64": "f8"}

pixel_batches = st.integers(1, 3).flatmap(
    lambda count: st.binary(min_size=count * 48, max_size=count * 48).map(
        lambda raw: np.frombuffer(raw, np.uint8).reshape(-1, 3, _SIDE, _SIDE)
    )
)


def _images(datatype: str, shape: Sequence[int], contents: Any, *, normalized: bool = False) -> Sequence[Any]:
    """Return the images in bytes, or in a list of numbers or of files."""
    if isinstance(contents, list) and datatype != BYTES:
        contents = array_of_numbers(datatype, [contents[:5], contents[5:]], math.prod(shape))
    return images_of_tensor(Tensor(datatype, shape, contents), _SIDE, normalized=normalized, limit=_LIMIT)


def _values(images: Sequence[ReadyPixels]) -> NDArray[Any]:
    return np.stack([image.values for image in images])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_elements_survive_the_wire(elements: list[bytes]) -> None:
    split = split_elements(memoryview(join_elements(elements)), len(elements))

    assert [bytes(element) for element in split] == elements


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=40), st.integers(1, 2**40))
def test_any_bytes_are_elements_or_refused(raw: bytes, count: int) -> None:
    try:
        elements = split_elements(memoryview(raw), count)
    except InvalidInputError:
        return
    assert join_elements(bytes(element) for element in elements) == raw


def test_elements_are_views_of_the_body() -> None:
    body = memoryview(join_elements([b"a", b"bc"]))

    assert all(element.obj is body.obj for element in split_elements(body, 2))


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (b"", 1),
        (b"\0\0", 1),
        (struct.pack("<I", 5) + b"four", 1),
        (struct.pack("<I", 2**32 - 1), 1),
        (join_elements([b"one", b"two"]), 1),
        (join_elements([b"one"]), 2),
        (join_elements([b"four"]) + b"\0\0\0", 2),
        (b"\0" * 4, 2**62),
    ],
)
def test_lengths_that_do_not_add_up_are_refused(raw: bytes, count: int) -> None:
    with pytest.raises(InvalidInputError):
        split_elements(memoryview(raw), count)


@pytest.mark.parametrize("datatype", _DTYPES)
@settings(max_examples=10, deadline=None)
@given(pixels=pixel_batches)
def test_pixels_of_every_datatype_arrive_in_both_layouts(datatype: str, pixels: NDArray[np.uint8]) -> None:
    sent = pixels.astype(f"<{_DTYPES[datatype]}")
    last = np.ascontiguousarray(sent.transpose(0, 2, 3, 1))

    for array in (sent, last):
        binary = _values(_images(datatype, array.shape, memoryview(array.tobytes())))
        listed = _values(_images(datatype, array.shape, array.reshape(-1).tolist()))
        assert binary.dtype == listed.dtype == sent.dtype
        for found in (binary, listed):
            np.testing.assert_array_equal(found, sent)


def test_one_image_needs_no_dimension_of_the_batch() -> None:
    pixels = np.arange(48, dtype=np.uint8)

    for shape in ([3, _SIDE, _SIDE], [_SIDE, _SIDE, 3]):
        [image] = _images("UINT8", shape, memoryview(pixels.tobytes()))
        assert image.values.shape == (3, _SIDE, _SIDE)


def test_pixels_are_not_copied() -> None:
    body = memoryview(bytes(200))[7:199]

    [image] = _images("FP32", [1, 3, _SIDE, _SIDE], body, normalized=True)

    assert image.values.base is not None
    assert not image.values.flags.owndata


def test_only_floats_are_normalized_and_bf16_is_the_upper_half_of_float32() -> None:
    ones = np.ones(48, np.float32)
    halves = (ones.view(np.uint32) >> 16).astype("<u2")

    [whole] = _images("UINT8", [3, _SIDE, _SIDE], memoryview(bytes(48)), normalized=True)
    [single] = _images("FP32", [3, _SIDE, _SIDE], memoryview(ones.tobytes()), normalized=True)
    [half] = _images("BF16", [3, _SIDE, _SIDE], memoryview(halves.tobytes()), normalized=True)
    [listed] = _images("BF16", [3, _SIDE, _SIDE], ones.tolist(), normalized=True)

    assert [image.normalized for image in (whole, single, half, listed)] == [False, True, True, True]
    assert [image.bfloat16 for image in (whole, single, half, listed)] == [False, False, True, False]
    assert half.values.dtype == np.uint16
    assert listed.values.dtype == np.float32


def test_rows_of_bytes_are_files() -> None:
    padded = np.array([[1, 2, 0], [3, 4, 5]], np.uint8)

    for contents in (memoryview(padded.tobytes()), padded.reshape(-1).tolist()):
        assert [bytes(file) for file in _images("UINT8", [2, 3], contents)] == [b"\1\2\0", b"\3\4\5"]
    assert [bytes(file) for file in _images("UINT8", [3], memoryview(b"abc"))] == [b"abc"]
    assert [bytes(file) for file in _images("UINT8", [2, 0], memoryview(b""))] == [b"", b""]


def test_typed_elements_of_bytes_have_no_lengths() -> None:
    assert [bytes(file) for file in _images(BYTES, [2, 1], [b"one", b"two"])] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("datatype", "shape", "error"),
    [
        ("BOOL", [1, 3, _SIDE, _SIDE], InvalidInputError),
        ("STRING", [1], InvalidInputError),
        ("UINT8", [1, 3, 5, 5], InvalidInputError),
        ("UINT8", [1, 1, 3, _SIDE, _SIDE], InvalidInputError),
        ("UINT8", [], InvalidInputError),
        ("FP32", [48], InvalidInputError),
        ("UINT16", [1, 48], InvalidInputError),
        (BYTES, [1] * 9, InvalidInputError),
        (BYTES, [-1], InvalidInputError),
        (BYTES, [2**32], InvalidInputError),
        (BYTES, [0], NoImagesError),
        ("UINT8", [0, 3, _SIDE, _SIDE], NoImagesError),
        (BYTES, [_LIMIT + 1, 1], TooManyImagesError),
        (BYTES, [2**31, 2**31], TooManyImagesError),
        ("UINT8", [2**31, 2**31], TooManyImagesError),
        ("FP64", [2**31, 3, _SIDE, _SIDE], TooManyImagesError),
    ],
)
def test_shapes_and_datatypes_that_are_no_images_are_refused(
    datatype: str, shape: list[int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        count_images(datatype, shape, _SIDE, _LIMIT)


@pytest.mark.parametrize(
    ("datatype", "shape", "contents"),
    [
        ("UINT8", [3, _SIDE, _SIDE], memoryview(bytes(47))),
        ("FP32", [3, _SIDE, _SIDE], memoryview(bytes(48))),
        ("UINT8", [2**31], memoryview(bytes(3))),
        ("UINT8", [3, _SIDE, _SIDE], [0] * 47),
        ("UINT8", [3, _SIDE, _SIDE], [256] * 48),
        ("UINT8", [3, _SIDE, _SIDE], [0.5] * 48),
        ("UINT8", [3, _SIDE, _SIDE], [None] * 48),
        ("INT64", [3, _SIDE, _SIDE], [10**400] * 48),
        ("FP32", [3, _SIDE, _SIDE], ["a"] * 48),
        ("FP32", [3, _SIDE, _SIDE], [{}] * 48),
        ("FP32", [3, _SIDE, _SIDE], [[1.0]] * 48),
        ("FP32", [3, _SIDE, _SIDE], [1.0] * 49),
        (BYTES, [2], [1, 2]),
        (BYTES, [2], [b"one"]),
    ],
)
def test_contents_that_do_not_fit_the_shape_or_datatype_are_refused(
    datatype: str, shape: list[int], contents: Any
) -> None:
    with pytest.raises(InvalidInputError):
        _images(datatype, shape, contents)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abc", max_size=3), min_size=1, max_size=6), st.integers(0, 3))
def test_nested_texts_are_flattened(texts: list[str], depth: int) -> None:
    values: list[Any] = texts
    for _ in range(depth):
        values = [values[:1], values[1:]]

    assert flat_values(values, len(texts)) == texts
    with pytest.raises(InvalidInputError):
        flat_values(values, len(texts) + 1)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=50))
def test_base64_and_data_uris_are_texts(image: bytes) -> None:
    encoded = base64.b64encode(image)

    for text in (encoded, b"data:image/png;base64," + encoded, base64.encodebytes(image)):
        assert is_text(memoryview(text))


@pytest.mark.parametrize(
    "begin", [b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF89a\x01\0", b"RIFF\0\0\0\0WEBP", b"II*\0", b""]
)
def test_files_are_no_texts(begin: bytes) -> None:
    assert not is_text(memoryview(begin))
