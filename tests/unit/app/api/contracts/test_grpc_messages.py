"""Messages of gRPC: raw inputs are taken out without a copy, and what would take long to parse is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("google.protobuf")
pytest.importorskip("grpc")

from app.api.contracts.grpc_messages import (
    HEALTH,
    INFERENCE,
    client_of,
    methods_of,
    parse,
    split_request,
)
from app.api.contracts.oip_grpc import PROCEDURES
from app.http.problems import BodyTooLargeError, InvalidInputError

_REQUEST = next(method.request for method in methods_of(INFERENCE) if method.name == "ModelInfer")


def _sent(**fields: Any) -> bytes:
    message: bytes = _REQUEST(**fields).SerializeToString()
    return message


def _typed(**contents: Any) -> bytes:
    return _sent(inputs=[{"name": "x", "datatype": "FP32", "shape": [1], "contents": contents}])


def test_every_method_has_a_procedure() -> None:
    assert set(PROCEDURES) == {method.name for method in methods_of(INFERENCE)}
    assert [method.path for method in methods_of(HEALTH)] == [f"/{HEALTH}/Check", f"/{HEALTH}/Watch"]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300), st.lists(st.binary(max_size=300), max_size=4))
def test_raw_inputs_are_views_and_the_rest_stays(name: str, raw: list[bytes]) -> None:
    fields = {"model_name": name, "id": "7", "inputs": [{"name": "x", "shape": [2**31, 1]}]}
    message = _sent(**fields, raw_input_contents=raw)

    split = split_request(message)

    assert [bytes(each) for each in split.raw_inputs] == raw
    assert all(each.obj is message for each in split.raw_inputs)
    assert parse(_REQUEST, split.rest) == _REQUEST(**fields)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_refused(message: bytes) -> None:
    try:
        parse(_REQUEST, split_request(message).rest)
    except InvalidInputError:
        return


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_message_is_a_message_or_refused(at: int, byte: int) -> None:
    damaged = bytearray(_typed(fp32_contents=[1.0] * 20, bytes_contents=[b"abc"]))
    damaged[at % len(damaged)] = byte
    try:
        parse(_REQUEST, split_request(bytes(damaged)).rest)
    except InvalidInputError:
        return


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": [{"shape": [1] * 70_000}]},
        {"outputs": [{"parameters": {str(number): {} for number in range(9000)}}]},
        {"id": "7" * 70_000},
        {"inputs": [{"parameters": {"a": {"string_param": "b" * 70_000}}, "contents": {"bytes_contents": [b"c"]}}]},
    ],
)
def test_names_shapes_and_parameters_are_short(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="65536 bytes besides images"):
        split_request(_sent(**fields))


def test_typed_contents_have_limits_and_numbers_count_as_memory() -> None:
    numbers = _typed(uint_contents=[1] * 1000)
    files = _typed(bytes_contents=[bytes(9 * 2**20)])

    assert split_request(numbers).parsed_bytes >= 2 * len(numbers) + 8 * 1000
    assert split_request(files).parsed_bytes < 3 * len(files)
    for contents in ({"uint_contents": [1] * (8 * 2**20 + 1)}, {"bytes_contents": [bytes(8 * 2**20)] * 2}):
        with pytest.raises(BodyTooLargeError, match="raw_input_contents"):
            split_request(_typed(**contents))


@pytest.mark.parametrize(
    "message",
    [
        _sent(raw_input_contents=[b""] * 2049),
        _sent(inputs=[{"shape": [1]}] * 1025),
        _sent(inputs=[{"contents": {"bytes_contents": [b""] * 1023}}] * 2),
        b"\x28" * 4100,
        b"\xff" * 11,
        b"\x3a\x05abc",
        b"\x3f",
    ],
)
def test_many_fields_and_broken_ones_are_refused(message: bytes) -> None:
    with pytest.raises(InvalidInputError):
        split_request(message)


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:127.0.0.1:4711", ("127.0.0.1", 4711)),
        ("ipv6:%5B::1%5D:4711", ("::1", 4711)),
        ("ipv6:[fe80::1]:80", ("fe80::1", 80)),
        ("unix:/run/gradless", None),
        ("", None),
    ],
)
def test_a_client_has_the_address_that_grpc_tells(peer: str, client: tuple[str, int] | None) -> None:
    assert client_of(peer) == client
