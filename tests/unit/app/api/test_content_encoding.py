"""Compressed bodies expand to what was compressed, in bounded pieces; damaged ones are refused."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.content_encoding import coding_of, compress, expanded_pieces

_MIB = 2**20


def _raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_gzip_deflate_and_raw_deflate_are_expanded(body: bytes) -> None:
    for compressed, coding in (
        (gzip.compress(body), "gzip"),
        (zlib.compress(body), "deflate"),
        (_raw_deflate(body), "deflate"),
    ):
        assert b"".join(expanded_pieces(compressed, coding)) == body


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 9))
def test_a_grpc_message_shows_its_coding(body: bytes, level: int) -> None:
    assert coding_of(gzip.compress(body, level)) == "gzip"
    assert coding_of(zlib.compress(body, level)) == "deflate"
    # The first field of a message has a number below 15.
    assert coding_of(b"\x0a\x04" + body) is None


def test_a_bomb_expands_in_pieces() -> None:
    bomb = zlib.compress(bytes(10 * _MIB))

    sizes = [len(piece) for piece in expanded_pieces(bomb, "deflate")]

    assert sum(sizes) == 10 * _MIB
    assert max(sizes) <= _MIB


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"", "gzip"),
        (b"", "deflate"),
        (b"rubbish", "gzip"),
        (b"\xff" * 20, "deflate"),
        (gzip.compress(b"a" * 1000, mtime=0)[:-1], "gzip"),
        (gzip.compress(b"a", mtime=0) + b"b", "gzip"),
        (gzip.compress(b"a", mtime=0) + bytes(70_000), "gzip"),
    ],
)
def test_damaged_bodies_are_refused(body: bytes, coding: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of no other kind
        list(expanded_pieces(body, coding))


@pytest.mark.anyio
@pytest.mark.parametrize("size", [2000, _MIB])
async def test_answers_are_compressed_as_clients_expand_them(size: int) -> None:
    body = bytes(range(200)) * (size // 200)

    assert gzip.decompress(await compress(body, "gzip")) == body
    assert zlib.decompress(await compress(body, "deflate")) == body
