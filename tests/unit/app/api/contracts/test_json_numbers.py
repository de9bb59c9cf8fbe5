"""Numbers of a tensor in JSON: parsed in pieces they are those that the whole text has."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.contracts import json_numbers
from app.api.contracts.json_numbers import JsonNumbers, take_numbers
from app.http.problems import InvalidInputError

numbers = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
nested = st.recursive(st.lists(numbers, min_size=1), lambda inner: st.lists(inner, min_size=1), max_leaves=40)


def _flat(value: Any) -> list[Any]:
    return [number for each in value for number in _flat(each)] if isinstance(value, list) else [value]


def _numbers(found: JsonNumbers | None) -> list[Any]:
    assert found is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_numbers, "_PIECE_BYTES", 150)
        return [number for piece in found.pieces() for number in piece]


@settings(max_examples=50, deadline=None)
@given(data=nested, indent=st.sampled_from([None, 1]), last=st.booleans())
def test_nested_numbers_are_taken_out_in_their_order(data: list[Any], indent: int | None, *, last: bool) -> None:
    named = {"name": '"data"', "shape": [3]}
    input_ = named | {"data": data} if last else {"data": data} | named
    text = json.dumps({"id": "data", "inputs": [input_]}, indent=indent).encode()

    rest, found = take_numbers(bytearray(text))

    assert json.loads(rest) == {"id": "data", "inputs": [input_ | {"data": True}]}
    assert _numbers(found) == _flat(data)
    assert found is not None
    assert found.most >= len(_flat(data))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"data": ["AAAA"]}',
        b'{"data": [["AAAA", 1]]}',
        b'{"data": [{}]}',
        b'{"data": [1, {"a": 1}]}',
        b'{"data": "[1]"}',
        b'{"data": 1}',
        b'{"data": [1}',
        b'{"data": [[1]}',
        b'{"data": [1]]}',
        b'{"data": [1] 2}',
        b'{"my\\"data": [1]}',
        b'{"data',
        b'{"data":',
        b'{"data": [',
    ],
)
def test_all_else_is_left_in_its_place(text: bytes) -> None:
    assert take_numbers(text) == (text, None)


@pytest.mark.parametrize(
    "data", [b"[1 2]", b"[[1][2]]", b"[1,,2]", b"[NaN]", b"[Infinity]", b"[01]", b"[-]", b"[1e]", b"[,]"]
)
def test_what_is_no_number_is_refused(data: bytes) -> None:
    _, found = take_numbers(b'{"data": %s}' % data)

    with pytest.raises(InvalidInputError):
        _numbers(found)


@pytest.mark.parametrize("filler", [b" ", b"1", b"["])
def test_no_piece_is_long(filler: bytes) -> None:
    text = b'{"data": [%s]}' % (b"1," + filler * 300_000 + (b"]" * 300_000 if filler == b"[" else b""))
    _, found = take_numbers(text)

    assert found is not None
    with pytest.raises(InvalidInputError):
        list(found.pieces())
