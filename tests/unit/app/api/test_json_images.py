"""Base64 of images is accepted in every usual form, and JSON that would take long to parse is refused."""

from __future__ import annotations

import base64
import json

import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api import json_images
from app.api.json_images import decode_base64, parse_object
from app.http.problems import InvalidInputError
from app.observability.request_record import RequestRecord, keep_record, record_of
from app.settings import Settings
from models.interface.admission import Budget
from models.interface.errors import BodyMemoryFullError, ImageTooLargeError

_HELD_BYTES = 10 * 2**20


@pytest.fixture
def request_() -> Request:
    """A request whose images and JSON may take 10 MiB."""
    scope = {"type": "http", "headers": []}
    keep_record(scope, RequestRecord("id", Budget(_HELD_BYTES, lambda _used: BodyMemoryFullError(_HELD_BYTES))))
    return Request(scope)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_every_form_of_base64_is_decoded(image: bytes) -> None:
    usual = base64.b64encode(image).decode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_images, "_PIECE", 8)
        assert decode_base64(usual) == image
        assert decode_base64(f"data:,{usual}", 6) == image
        assert decode_base64(usual.rstrip("=")) == image
        assert decode_base64(base64.urlsafe_b64encode(image).decode()) == image
        assert decode_base64("\n".join(usual[at : at + 5] for at in range(0, len(usual), 5))) == image


@pytest.mark.parametrize("text", ["AAA=AAAA", "AAAAAA==AAAA", "AAAAA", "AAAA=AAA", "AA*A", "\N{SNOWMAN}AAA"])
def test_other_text_is_no_base64(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode_base64(text)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body",
    [
        b'{"a": [' + b"[]," * 100_000 + b"[]]}",
        b'{"a": "' + b"\\n" * 2**20 + b'"}',
        b"[" * 1000,
        # Whole numbers, for which the time grows with the square of their digits, and white space.
        b'{"a": [' + b",".join([b"9" * 4299] * 500) + b"]}",
        b'{"a\\"": [' + b",".join([b"9" * 4299] * 500) + b"]}",
        b'{"a\\\\": [' + b",".join([b"9" * 4299] * 500) + b"]}",
        b'{"a":' + b" " * 2**21 + b'"b"}',
        # Quotes, by which strings are told apart.
        b"{" + b'"' * 200_000,
        b'{"a": "' + b'\\"' * 33_000 + b'"}',
    ],
)
async def test_json_that_takes_long_is_refused(request_: Request, body: bytes) -> None:
    with pytest.raises(InvalidInputError):
        await parse_object(request_, body)


@pytest.mark.anyio
async def test_large_json_is_parsed_and_counted(request_: Request) -> None:
    text = "A" * 2**20

    assert await parse_object(request_, b'{"a": "%s"}' % text.encode()) == {"a": text}
    with pytest.raises(BodyMemoryFullError):
        await parse_object(request_, bytes(_HELD_BYTES))


@pytest.mark.anyio
@pytest.mark.parametrize("character", ["\N{SNOWMAN}", "\\u2603"])
async def test_json_whose_strings_are_wide_counts_as_memory(request_: Request, character: str) -> None:
    body = f'{{"images": ["{"A" * 100_000}"], "user": "{character}"}}'.encode()

    await parse_object(request_, body)

    assert record_of(request_.scope).held_bytes == 4 * len(body)


@pytest.mark.anyio
async def test_long_json_is_ascii_or_refused(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_images, "_MAX_WIDE_BYTES", 40)
    # Characters that some libraries escape take one byte.
    plain = b'{"images": ["AA\\u002B\\u002FAAAAAAAAAAAAAAAAAAAAAAAA"]}'

    assert await parse_object(request_, plain)
    with pytest.raises(InvalidInputError, match="must be ASCII"):
        await parse_object(request_, plain.replace(b"002B", b"262B"))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(['"', "\\", '\\"', ","]), st.text(alphabet='ab"\\', max_size=6)), max_size=8),
    st.integers(0, 10**12),
)
def test_bytes_outside_strings_are_those_that_remain_without_them(texts: list[str], number: int) -> None:
    body = json.dumps({"texts": texts, "number": number}).encode()
    signs = len(b"{: , : }") + len(b"[]") + 2 * max(0, len(texts) - 1) + len(str(number))

    assert json_images._bytes_outside_strings(body) == signs  # noqa: SLF001


@pytest.mark.anyio
async def test_base64_that_can_only_be_too_large_is_not_decoded(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_images, "settings_of", lambda _: Settings(max_image_bytes=3000))
    decoded: list[int] = []
    decode = json_images.decode_base64

    def recorded(text: str, start: int) -> bytes:
        decoded.append(len(text))
        return decode(text, start)

    monkeypatch.setattr(json_images, "decode_base64", recorded)
    lines = base64.encodebytes(bytes(3000)).decode().replace("\n", "\r\n")

    images = await json_images.images_of(request_, [lines, f"data:image/png;base64,{lines}", "=" * 5000, "A" * 10**6])

    assert images[:2] == [bytes(3000)] * 2
    assert all(isinstance(image, ImageTooLargeError) for image in images[2:])
    assert max(decoded) < 5000


@pytest.mark.parametrize("signs", [3, 4, 1000])
def test_only_a_few_signs_at_the_end_are_padding(signs: int) -> None:
    text = "AAAA" + "=" * signs
    if signs == 3:
        assert decode_base64(text) == bytes(3)
    else:
        with pytest.raises(ValueError, match=r".*"):
            decode_base64(text)
