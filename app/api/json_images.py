"""Images in JSON bodies: strings of base64, or data URIs. Addresses are never fetched.

A body in JSON is in memory three times: the body, its strings, and the files. All are counted before they are made.
"""

from __future__ import annotations

import asyncio
import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from pydantic_core import from_json

from app.http.problems import InvalidInputError, NoImagesError, TooManyImagesError
from app.observability.request_record import record_of
from app.settings import Settings
from models.interface.errors import ImageTooLargeError

# JSON values in one body. Each becomes an object, which takes far more time and memory than its text. Bodies with
# images have a few for each image.
_MAX_VALUES = 100_000
# Text that is decoded on the event loop, in all strings of a request together; more is decoded in a thread.
_MAX_TEXT_ON_LOOP = 256 * 1024

_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,20}:", re.IGNORECASE)

_WHITE_SPACE = b" \t\r\n"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def parse_json(request: Request, body: bytes | memoryview, *, max_values: int = _MAX_VALUES) -> Any:
    """Return the value of a JSON body, which has at most `max_values` values. Raises InvalidInputError,
    BodyMemoryFullError."""
    text = bytes(body)
    # Each value but the first follows a comma, or the bracket of its list or object.
    if len(text) > max_values and sum(map(text.count, (b",", b"[", b"{"))) >= max_values:
        raise InvalidInputError(f"The body has more than {max_values} JSON values.")
    record_of(request.scope).reserve_held_bytes(len(text))
    try:
        return from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise InvalidInputError(f"The body is not valid JSON: {error}.") from None


def parse_object(request: Request, body: bytes) -> dict[str, Any]:
    """As parse_json, for a body that is a JSON object."""
    parsed = parse_json(request, body)
    if not isinstance(parsed, dict):
        raise InvalidInputError("The body must be a JSON object.")
    return parsed


async def images_of(
    request: Request, settings: Settings, texts: Sequence[object], parameter: str | None = None
) -> list[bytes | ImageTooLargeError]:
    """Return the image file in each of `texts`: base64 in the usual or the URL-safe alphabet, or a data URI. An image
    that is too large is replaced by its error. `parameter` is the key of the JSON body that has the texts.

    Raises NoImagesError, TooManyImagesError, InvalidInputError, BodyMemoryFullError.
    """
    if not texts:
        raise NoImagesError("The request has no image.")
    if len(texts) > settings.max_images_per_request:
        raise TooManyImagesError(settings.max_images_per_request)
    record = record_of(request.scope)
    item = record.contract.item
    checked = [_checked(text, item.format(position), parameter) for position, text in enumerate(texts)]
    total = sum(map(len, checked))
    record.reserve_held_bytes(total * 3 // 4)

    def decode_all() -> list[bytes | ImageTooLargeError]:
        return [
            _image(text, item.format(position), parameter, settings.max_image_bytes)
            for position, text in enumerate(checked)
        ]

    return decode_all() if total <= _MAX_TEXT_ON_LOOP else await asyncio.to_thread(decode_all)


async def images_of_body(request: Request, settings: Settings, body: bytes) -> list[bytes | ImageTooLargeError]:
    """Return the image files of a native body, `{"images": [TEXT, ...]}`. Raises as parse_object and images_of do."""
    stated = parse_object(request, body)
    texts = stated.get("images")
    if len(stated) != 1 or not isinstance(texts, list):
        raise InvalidInputError('The body must be {"images": [...]}, each image as base64 or as a data URI.')
    return await images_of(request, settings, texts)


def decode_base64(encoded: bytes) -> bytes:
    """Return what `encoded` stands for. White space, the URL-safe alphabet and missing padding are accepted. Raises
    ValueError."""
    try:
        return a2b_base64(encoded, strict_mode=True)
    except Base64Error:
        bare = encoded.translate(_URL_SAFE, _WHITE_SPACE).rstrip(b"=")
    return a2b_base64(bare + b"=" * (-len(bare) % 4), strict_mode=True)


def _checked(text: object, where: str, parameter: str | None) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(f"{where}: it is no string; send the image as base64 or as a data URI.", parameter)
    if _ADDRESS.match(text) and not _DATA_URI.match(text):
        raise InvalidInputError(f"{where}: addresses are not fetched; send the image as base64.", parameter)
    return text


def _image(text: str, where: str, parameter: str | None, limit_bytes: int) -> bytes | ImageTooLargeError:
    found = _DATA_URI.match(text)
    if found is not None:
        text = text[found.end() :]
    try:
        image = decode_base64(text.encode("ascii"))
    except ValueError:
        raise InvalidInputError(f"{where}: it is not base64 of an image.", parameter) from None
    return ImageTooLargeError(limit_bytes) if len(image) > limit_bytes else image
