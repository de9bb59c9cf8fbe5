"""Images in JSON bodies: strings of base64, or data URIs. Addresses are never fetched.

A body in JSON is in memory three times: the body, its strings, and the files. All are counted before they are made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import Any

import pybase64
from fastapi import Request
from pydantic_core import from_json

from app.api.dependencies import settings_of
from app.api.off_loop import off_loop
from app.api.uploads import WHITE_SPACE, content_type_of
from app.http.problems import InvalidInputError, NoImagesError, TooManyImagesError
from app.observability.request_record import record_of
from models.interface.errors import ImageTooLargeError

# The parser holds the interpreter lock. It takes 1 ms for a MiB of text, 10 ms for as many objects as this, 30 ms for
# as many escapes, and 15 ms for a MiB of numbers with 4,300 digits each. Bodies with images have a few values for each
# image, and at most one escape in 64 characters: some libraries escape slashes or line breaks.
_MAX_VALUES = 32_000
_MAX_ESCAPES = 2**20
_MAX_BYTES_OUTSIDE_STRINGS = 2 * 2**20
# Strings are told apart in Python, by their quotes.
_MAX_ESCAPED_QUOTES = 32_000
_MAX_QUOTES = 4 * _MAX_VALUES + _MAX_ESCAPED_QUOTES

# A string takes so many bytes a character if one character needs them, and longer to make.
_WIDEST = 4
_MAX_WIDE_BYTES = 16 * 2**20

# Text that is counted or translated by one call, which holds the interpreter lock for about a millisecond.
_PIECE = 512 * 1024

_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,20}:", re.IGNORECASE)

_BACKSLASH = 0x5C
# `=` signs at the end of base64 that are ignored; and the white space that is allowed for, a sixteenth of the largest
# image: line breaks take less.
_PADDING = 3
_WHITE_SPACE_SHARE = 16
_URL_SAFE = bytes.maketrans(b"-_", b"+/")

_JSON = b"application/json"
_NATIVE_FORM = 'The body must be {"images": [...]}, each image as base64 or as a data URI.'


async def parse_object(request: Request, body: bytes | bytearray) -> dict[str, Any]:
    """Return the object that a JSON body is. Raises InvalidInputError, BodyMemoryFullError."""
    wide = await off_loop(len(body), partial(_is_wide, body))
    if wide and len(body) > _MAX_WIDE_BYTES:
        raise InvalidInputError(f"JSON of more than {_MAX_WIDE_BYTES} bytes must be ASCII.")
    record_of(request.scope).reserve_held_bytes(len(body) * (_WIDEST if wide else 1))
    parsed = await off_loop(len(body), partial(_parsed, body))
    if not isinstance(parsed, dict):
        raise InvalidInputError("The body must be a JSON object.")
    return parsed


def _parsed(body: bytes | bytearray) -> object:
    # Each value but the first follows a comma, or the bracket of its list or object.
    if _number_of(body, b",", b"[", b"{") >= _MAX_VALUES:
        raise InvalidInputError(f"The body has more than {_MAX_VALUES} JSON values.")
    if _number_of(body, b"\\") >= _MAX_ESCAPES:
        raise InvalidInputError(f"The strings in the body have more than {_MAX_ESCAPES} escapes.")
    if _number_of(body, b'"') > _MAX_QUOTES or _number_of(body, b'\\"') > _MAX_ESCAPED_QUOTES:
        raise InvalidInputError("The body has more quotes than JSON with images.")
    if _bytes_outside_strings(body) > _MAX_BYTES_OUTSIDE_STRINGS:
        raise InvalidInputError(f"The body has more than {_MAX_BYTES_OUTSIDE_STRINGS} bytes outside of strings.")
    try:
        found: object = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise InvalidInputError(f"The body is not valid JSON: {error}.") from None
    return found


def _bytes_outside_strings(text: bytes | bytearray) -> int:
    """Return the bytes of JSON that are not in strings: numbers, signs and white space."""
    outside, at = 0, 0
    while (start := text.find(b'"', at)) >= 0:
        outside += start - at
        end = text.find(b'"', start + 1)
        while end >= 0 and _is_escaped(text, end):
            end = text.find(b'"', end + 1)
        if end < 0:
            # The parser refuses a string without an end.
            return outside
        at = end + 1
    return outside + len(text) - at


def _is_escaped(text: bytes | bytearray, at: int) -> bool:
    """Return True if an odd number of backslashes precedes the character."""
    before = at
    while text[before - 1] == _BACKSLASH:
        before -= 1
    return (at - before) % 2 == 1


def _is_wide(text: bytes | bytearray) -> bool:
    """Return True if `text` may have characters above U+00FF, also as escapes."""
    # Finding one character is many times faster than counting two.
    return not text.isascii() or (b"\\" in text and _number_of(text, b"\\u") > _number_of(text, b"\\u00"))


def _number_of(text: bytes | bytearray, *signs: bytes) -> int:
    """Return how often `signs` occur in `text`."""
    starts = range(0, len(text), _PIECE)
    return sum(text.count(sign, start, start + _PIECE + len(sign) - 1) for sign in signs for start in starts)


async def images_of(request: Request, texts: Sequence[object]) -> list[bytes | ImageTooLargeError]:
    """Return the image file in each of `texts`: base64 in the usual or the URL-safe alphabet, or a data URI. An image
    that is too large is replaced by its error.

    Raises NoImagesError, TooManyImagesError, InvalidInputError, BodyMemoryFullError.
    """
    if not texts:
        raise NoImagesError("The request has no image.")
    settings = settings_of(request)
    if len(texts) > settings.max_images_per_request:
        raise TooManyImagesError(settings.max_images_per_request)
    record = record_of(request.scope)
    item = record.contract.item
    checked = [_checked(text, item.format(position)) for position, text in enumerate(texts)]
    total = sum(map(len, checked))
    record.reserve_held_bytes(total * 3 // 4)

    def decode_all() -> list[bytes | ImageTooLargeError]:
        return [_image(text, item.format(position), settings.max_image_bytes) for position, text in enumerate(checked)]

    return await off_loop(total, decode_all)


async def images_of_body(request: Request, body: bytes) -> list[bytes | ImageTooLargeError]:
    """Return the image files of a native body, `{"images": [TEXT, ...]}`. A body that is something else is a file of no
    known format, unless its Content-Type says that it is JSON.

    Raises as parse_object and images_of do, and ImageTooLargeError.
    """
    declared = content_type_of(request.headers)[0] == _JSON
    stated: dict[str, Any] = {}
    try:
        stated = await parse_object(request, body)
    except InvalidInputError:
        if declared:
            raise
    if not declared and "images" not in stated:
        limit_bytes = settings_of(request).max_image_bytes
        if len(body) > limit_bytes:
            raise ImageTooLargeError(limit_bytes)
        return [body]
    texts = stated.get("images")
    if len(stated) != 1 or not isinstance(texts, list):
        raise InvalidInputError(_NATIVE_FORM)
    return await images_of(request, texts)


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(f"{where}: it is no string; send the image as base64 or as a data URI.")
    if _ADDRESS.match(text) and not _DATA_URI.match(text):
        raise InvalidInputError(f"{where}: addresses are not fetched; send the image as base64.")
    return text


def _image(text: str, where: str, limit_bytes: int) -> bytes | ImageTooLargeError:
    found = _DATA_URI.match(text)
    start = 0 if found is None else found.end()
    if len(text) - start > limit_bytes * 4 // 3 + limit_bytes // _WHITE_SPACE_SHARE + _PADDING:
        return ImageTooLargeError(limit_bytes)
    try:
        image = decode_base64(text, start)
    except ValueError:
        raise InvalidInputError(f"{where}: it is not base64 of an image.") from None
    return ImageTooLargeError(limit_bytes) if len(image) > limit_bytes else image


def decode_base64(text: str, start: int = 0) -> bytes:
    """Return what base64 in `text`, from `start` on, stands for. White space, the URL-safe alphabet and missing padding
    are accepted. Raises ValueError."""
    encoded = text[start:]
    try:
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:
        bare = BytesIO()
        for at in range(0, len(encoded), _PIECE):
            bare.write(encoded[at : at + _PIECE].encode("ascii").translate(_URL_SAFE, WHITE_SPACE))
    usual = bare.getvalue()
    for _ in range(_PADDING):
        usual = usual.removesuffix(b"=")
    return pybase64.b64decode(usual + b"=" * (-len(usual) % 4), validate=True)
