"""The images in an input of the Open Inference Protocol, over REST and gRPC: in the bytes or numbers of a tensor.

Numbers and sizes that a client states are compared with what it sent before anything is allocated. Binary tensors are
little-endian and row-major; their images are views of the body.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from app.api.contracts.views import View
from app.api.dependencies import settings_of
from app.api.json_images import images_of
from app.api.off_loop import off_loop
from app.http.problems import InvalidInputError, NoImagesError, TooManyImagesError
from app.observability.request_record import record_of
from models.interface.errors import ImageTooLargeError
from models.interface.request import Image, ReadyPixels

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
_TEXT = re.compile(rb"data:|[A-Za-z0-9+/=_\s-]+\Z", re.IGNORECASE)
_BEGIN_BYTES = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input as its client sent it.

    `contents` are the bytes of a binary tensor, a flat array from `array_of_numbers`, or the elements of BYTES.
    """

    datatype: str
    shape: Sequence[int]
    contents: memoryview | NDArray[Any] | Sequence[bytes]


async def images_of_input(request: Request, view: View, tensor: Tensor) -> Sequence[Image | ImageTooLargeError]:
    """Return the images in `tensor`, in order. Raises what images_of_tensor and images_of raise."""
    limit = settings_of(request).max_images_per_request
    found = images_of_tensor(tensor, view.model.input_size, normalized=view.input != "pixels", limit=limit)
    pixels = [image for image in found if isinstance(image, ReadyPixels)]
    return pixels or await files_of(request, [file for file in found if isinstance(file, memoryview)])


async def files_of(request: Request, elements: Sequence[memoryview]) -> list[bytes | ImageTooLargeError]:
    """Return the file in each element. One that is base64 or a data URI is decoded. Raises what images_of raises."""
    size_bytes, limit_bytes = sum(map(len, elements)), settings_of(request).max_image_bytes
    record_of(request.scope).reserve_held_bytes(size_bytes)
    # Bytes that are not ASCII remain faults of their base64.
    texts = await off_loop(size_bytes, lambda: [str(each, "latin-1") for each in elements if is_text(each)])
    decoded: Iterator[bytes | ImageTooLargeError] = iter(())
    if texts:
        decoded = iter(await images_of(request, texts))
    return await off_loop(
        size_bytes,
        lambda: [
            next(decoded)
            if is_text(element)
            else ImageTooLargeError(limit_bytes)
            if len(element) > limit_bytes
            else bytes(element)
            for element in elements
        ],
    )


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
    """Return the encoded files or the ready pixels of a tensor. They are views of it.

    `normalized`: float pixels are normalized as the network takes them, not 0..255. `side` and `limit` as in
    count_images. Raises InvalidInputError, NoImagesError, TooManyImagesError.
    """
    count = count_images(tensor.datatype, tensor.shape, side, limit)
    if tensor.datatype == BYTES:
        if isinstance(tensor.contents, memoryview):
            return split_elements(tensor.contents, count)
        return [_bytes_of(element) for element in flat_values(tensor.contents, count)]
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
    """Return True if an element of a BYTES tensor begins as base64 or a data URI, and so is no image file."""
    return _TEXT.match(element[:_BEGIN_BYTES]) is not None


def flat_values(values: Iterable[Any], count: int) -> list[Any]:
    """Return the `count` elements of `values`, flat or nested lists, in their order. Raises InvalidInputError."""
    flat = list(islice(_unnested(values, MAX_DIMENSIONS), count + 1))
    if len(flat) != count:
        found = "more" if len(flat) > count else len(flat)
        raise InvalidInputError(f"The shape is of {count} elements, and data has {found}.")
    return flat


def _unnested(values: Iterable[Any], depth: int) -> Iterator[Any]:
    for value in values:
        if depth and isinstance(value, list):
            yield from _unnested(value, depth - 1)
        else:
            yield value


def _bytes_of(element: object) -> memoryview:
    if not isinstance(element, bytes):
        raise InvalidInputError(f"The elements of {BYTES} are files, not numbers.")
    return memoryview(element)


def array_of_numbers(datatype: str, pieces: Iterable[Sequence[Any]], count: int) -> NDArray[Any]:
    """Return the `count` numbers in `pieces` as a flat array; BF16 as float32. `datatype` is one of numbers.

    Raises InvalidInputError if there are more or fewer, or if the datatype does not have one of them.
    """
    dtype = np.dtype(np.float32) if datatype == _BF16 else _DTYPES[datatype]
    array = np.empty(count, dtype)
    end = 0
    for piece in pieces:
        start, end = end, end + len(piece)
        if end > count:
            break
        try:
            found = np.array(piece, np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                array[start:end] = found
        except (TypeError, ValueError, OverflowError):
            raise InvalidInputError("data is not a list of numbers.") from None
        if dtype.kind != "f" and not np.array_equal(array[start:end], found):
            raise InvalidInputError(f"data has numbers that {datatype} does not have.")
    if end != count:
        raise InvalidInputError(f"The shape is of {count} numbers, and data has {'more' if end > count else end}.")
    return array


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
    return np.asarray(tensor.contents)
