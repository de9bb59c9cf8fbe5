"""The tensors of the Open Inference Protocol: the images in their bytes or numbers. Pure: no request, no I/O.

Numbers and sizes that a client states are compared with what it sent before anything is allocated. Binary tensors are
little-endian and row-major; their images are views of the body.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.http.problems import InvalidInputError, NoImagesError, TooManyImagesError
from models.interface.request import ReadyPixels

MAX_DIMENSIONS = 8
MAX_DIMENSION = 2**31

# Arrays of encoded files, each with its length before it.
BYTES = "BYTES"
_UINT8 = "UINT8"
_BF16 = "BF16"

# BF16 is the upper half of a float32.
_DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        _UINT8: "<u1",
        "UINT16": "<u2",
        "UINT32": "<u4",
        "UINT64": "<u8",
        "INT8": "<i1",
        "INT16": "<i2",
        "INT32": "<i4",
        "INT64": "<i8",
        "FP16": "<f2",
        "FP32": "<f4",
        "FP64": "<f8",
        _BF16: "<u2",
    }.items()
}
_FLOATS = frozenset({"FP16", "FP32", "FP64", _BF16})

_LENGTH = struct.Struct("<I")
# Dimensions of one image or several: rows of bytes are files, the others pixels.
_OF_FILES = frozenset({1, 2})
_OF_PIXELS = frozenset({3, 4})

# Base64 or a data URI. Every image format has bytes that are neither within its first few.
_TEXT = re.compile(rb"(?:data:[^,]{0,200};base64,)?[A-Za-z0-9+/=_\s-]++", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input as its client sent it.

    `contents` are the bytes of a binary tensor; or its values, flat or nested lists of numbers, for BYTES of texts or
    bytes.
    """

    datatype: str
    shape: Sequence[int]
    contents: memoryview | Sequence[Any]


def count_images(datatype: str, shape: Sequence[int], side: int, limit: int) -> int:
    """Return the number of images in a tensor, for a network with inputs of `side` x `side` pixels.

    Raises InvalidInputError if such a tensor has no images, NoImagesError, TooManyImagesError above `limit`.
    """
    if datatype != BYTES and datatype not in _DTYPES:
        raise InvalidInputError(f"The datatype {datatype[:20]} is not accepted; use {BYTES} or {', '.join(_DTYPES)}.")
    if len(shape) > MAX_DIMENSIONS or not all(0 <= length <= MAX_DIMENSION for length in shape):
        raise InvalidInputError(
            f"A shape has at most {MAX_DIMENSIONS} dimensions of 0 to {MAX_DIMENSION}, not {list(shape[:20])}."
        )
    if datatype == BYTES:
        count = math.prod(shape)
    elif len(shape) in _OF_PIXELS and tuple(shape[-3:]) in {(3, side, side), (side, side, 3)}:
        count = shape[0] if len(shape) == max(_OF_PIXELS) else 1
    elif len(shape) in _OF_FILES and datatype == _UINT8:
        count = shape[0] if len(shape) == max(_OF_FILES) else 1
    else:
        raise InvalidInputError(
            f"The shape {list(shape)} of {datatype} is no images: this model takes pixels of [N, 3, {side}, {side}] or "
            f"[N, {side}, {side}, 3], encoded files as {_UINT8} [N, L] or as {BYTES} [N, 1]."
        )
    if count == 0:
        raise NoImagesError("The tensor has no image.")
    if count > limit:
        raise TooManyImagesError(limit)
    return count


def images_of_tensor(
    tensor: Tensor, side: int, *, normalized: bool, limit: int
) -> Sequence[memoryview] | Sequence[ReadyPixels]:
    """Return the encoded files or the ready pixels of a tensor, which is not BYTES in JSON. They are views of it.

    `normalized`: float pixels are normalized as the network takes them, not 0..255. `side` and `limit` as in
    count_images. Raises InvalidInputError, NoImagesError, TooManyImagesError.
    """
    count = count_images(tensor.datatype, tensor.shape, side, limit)
    if tensor.datatype == BYTES:
        if isinstance(tensor.contents, memoryview):
            return split_elements(tensor.contents, count)
        return [memoryview(element) for element in flat_values(tensor.contents, count)]
    array = _array_of(tensor)
    if len(tensor.shape) in _OF_FILES:
        return [row.data for row in array.reshape(count, tensor.shape[-1])]
    images = array.reshape(count, *tensor.shape[-3:])
    if tuple(tensor.shape[-3:]) != (3, side, side):
        images = images.transpose(0, 3, 1, 2)
    floats = tensor.datatype in _FLOATS
    halves = tensor.datatype == _BF16 and isinstance(tensor.contents, memoryview)
    return [ReadyPixels(image, normalized=normalized and floats, bfloat16=halves) for image in images]


def split_elements(raw: memoryview, count: int) -> list[memoryview]:
    """Return the `count` elements of a binary BYTES tensor: each is a uint32 length and that many bytes. Raises
    InvalidInputError."""
    if count * _LENGTH.size > len(raw):
        raise InvalidInputError(f"{len(raw)} bytes are too few for {count} elements of {BYTES}.")
    elements = []
    end = 0
    for position in range(count):
        start = end + _LENGTH.size
        if start <= len(raw):
            end = start + _LENGTH.unpack_from(raw, start - _LENGTH.size)[0]
        if max(start, end) > len(raw):
            raise InvalidInputError(f"Element {position} of the {BYTES} tensor ends after its {len(raw)} bytes.")
        elements.append(raw[start:end])
    if end < len(raw):
        raise InvalidInputError(f"{len(raw) - end} bytes follow the {count} elements of the {BYTES} tensor.")
    return elements


def join_elements(elements: Iterable[bytes]) -> bytes:
    """Return a binary BYTES tensor of `elements`."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def is_text(element: memoryview) -> bool:
    """Return True if an element of a BYTES tensor is base64 or a data URI, and so no image file."""
    return _TEXT.fullmatch(element) is not None


def flat_values(values: Sequence[Any], count: int) -> list[Any]:
    """Return the `count` elements of `values`, flat or nested lists, in their order. Raises InvalidInputError."""
    flat = list(values)
    for _ in range(MAX_DIMENSIONS):
        if not any(isinstance(value, list) for value in flat):
            break
        flat = list(_unnested(flat))
    if len(flat) != count:
        raise InvalidInputError(f"The shape is of {count} elements, and data has {len(flat)}.")
    return flat


def _unnested(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def _array_of(tensor: Tensor) -> NDArray[Any]:
    """Return the numbers of a tensor as a flat array: a view of a binary one. Raises InvalidInputError."""
    dtype, count = _DTYPES[tensor.datatype], math.prod(tensor.shape)
    if isinstance(tensor.contents, memoryview):
        wanted = count * dtype.itemsize
        if len(tensor.contents) != wanted:
            raise InvalidInputError(
                f"{tensor.datatype} {list(tensor.shape)} takes {wanted} bytes, not {len(tensor.contents)}."
            )
        return np.frombuffer(tensor.contents, dtype)
    return _array_of_numbers(tensor.contents, np.dtype(np.float32) if tensor.datatype == _BF16 else dtype, count)


def _array_of_numbers(values: Sequence[Any], dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    try:
        # With a dtype: NumPy would give every text of a list the length of the longest.
        found = np.array(values, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInputError("data is not a list of numbers, or its lists differ in length.") from None
    if len(found) != count:
        raise InvalidInputError(f"The shape is of {count} numbers, and data has {len(found)}.")
    with np.errstate(invalid="ignore", over="ignore"):
        array = found.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(array, found):
        raise InvalidInputError(f"data has numbers that {dtype.name} does not have.")
    return array
