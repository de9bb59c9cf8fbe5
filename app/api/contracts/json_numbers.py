"""The numbers of a tensor in JSON, parsed in pieces.

A tensor has 150,000 numbers for each image. Parsed together they would be as many objects at once, and the parser would
hold the interpreter lock for a tenth of a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from app.http.problems import InvalidInputError

_KEY = b'"data"'
# How often the word is looked for: it may be a value, or a key of parameters.
_MAX_KEYS = 8
_OPENING = re.compile(rb"\s{0,100}:\s{0,100}(?=\[)")

# What stands in place of the numbers.
TAKEN_OUT = b"true"

_PIECE_BYTES = 64 * 1024
# Numbers are row-major, nested or not.
_FLAT = bytes.maketrans(b"[]", b"  ")


@dataclass(frozen=True, slots=True)
class JsonNumbers:
    """Numbers in lists, flat or nested: the bytes of `text` from `start` to `end`."""

    text: bytes | bytearray
    start: int
    end: int

    @property
    def most(self) -> int:
        """The number of numbers that so many bytes can have."""
        return (self.end - self.start) // 2

    def pieces(self) -> Iterator[Sequence[Any]]:
        """Yield the numbers. Raises InvalidInputError."""
        start = self.start
        while start < self.end:
            # A number and the white space around it are far shorter than a piece.
            comma = self.text.find(b",", start + _PIECE_BYTES, min(start + 2 * _PIECE_BYTES, self.end))
            if comma < 0 and self.end - start > 2 * _PIECE_BYTES:
                raise InvalidInputError("data is not a list of numbers.")
            end = self.end if comma < 0 else comma
            try:
                yield from_json(b"[" + self.text[start:end].translate(_FLAT) + b"]", allow_inf_nan=False)
            except ValueError:
                raise InvalidInputError("data is not a list of numbers.") from None
            start = end + 1


def take_numbers(text: bytes | bytearray) -> tuple[bytes | bytearray, JsonNumbers | None]:
    """Return the JSON of a request with TAKEN_OUT in place of the numbers under the key `data`, and those numbers;
    `text` itself and None if that key has something else, such as strings."""
    start = 0
    for _ in range(_MAX_KEYS):
        start = text.find(_KEY, start)
        if start < 0:
            break
        found = _OPENING.match(text, start + len(_KEY))
        # Not the end of a string with a quote in it.
        if found is not None and text[start - 1 : start] != b"\\":
            return _without_numbers(text, found.end())
        start += len(_KEY)
    return text, None


def _without_numbers(text: bytes | bytearray, start: int) -> tuple[bytes | bytearray, JsonNumbers | None]:
    # Lists of numbers have neither strings nor objects.
    limit = min((at for sign in (b'"', b"}", b"{") if (at := text.find(sign, start)) >= 0), default=len(text))
    end = text.rfind(b"]", start, limit) + 1
    whole = end > 0 and limit - end <= _PIECE_BYTES and not text[end:limit].strip(b" \t\r\n,")
    if not whole or text.count(b"[", start, end) != text.count(b"]", start, end):
        return text, None
    return text[:start] + TAKEN_OUT + text[end:], JsonNumbers(text, start, end)
