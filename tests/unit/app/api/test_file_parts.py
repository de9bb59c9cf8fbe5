"""FileParts: the files of a multipart body, in any chunks, and its limits."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.api.file_parts import PIECE_BYTES, FileParts
from app.http.problems import MalformedMultipartError, NoImagesError, TooManyImagesError
from models.interface.errors import ImageTooLargeError

_BOUNDARY = b"cut-here-7"
_FILE = b'Content-Disposition: form-data; name="images"; filename="a.png"\r\nContent-Type: image/png'
_FIELD = b'Content-Disposition: form-data; name="note"'


def _body(*parts: tuple[bytes, bytes]) -> bytes:
    """A multipart body of (headers, content) parts."""
    return b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (_BOUNDARY, *part) for part in parts) + b"--%b--\r\n" % _BOUNDARY


def _read(
    *chunks: bytes, max_files: int = 8, max_file_bytes: int = 1000, boundary: bytes = _BOUNDARY
) -> Sequence[bytes | ImageTooLargeError]:
    parts = FileParts(boundary, max_files=max_files, max_file_bytes=max_file_bytes)
    for chunk in chunks:
        parts.feed(chunk)
    return parts.files()


# Bytes that look like the start of a boundary are the difficult case.
_contents = st.lists(
    st.one_of(
        st.binary(max_size=60), st.sampled_from([b"\r\n", b"--", b"\r\n--cut", b"--cut-here-", b"\r\n\r\n", b"\r"])
    ),
    max_size=6,
).map(b"".join)


@given(files=st.lists(_contents, min_size=1, max_size=5), cuts=st.lists(st.integers(0, 700), max_size=12))
@example(files=[b"\r\n--cut-here-"], cuts=[*range(300)])
def test_files_are_unchanged_however_the_body_is_chunked(files: list[bytes], cuts: list[int]) -> None:
    body = _body(*((_FILE, file) for file in files))
    ends = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]

    chunks = [body[start:end] for start, end in itertools.pairwise(ends)]

    assert _read(*chunks) == files


@given(
    body=st.binary(max_size=200), head=st.sampled_from([b"", b"--" + _BOUNDARY, b"--" + _BOUNDARY + b"\r\n" + _FILE])
)
def test_any_bytes_are_files_or_an_error_with_a_problem(body: bytes, head: bytes) -> None:
    with pytest.raises((MalformedMultipartError, NoImagesError)):
        _read(head + body)


def test_fields_that_are_not_files_are_ignored() -> None:
    assert _read(_body((_FIELD, b"hello"), (_FILE, b"image"), (_FIELD, b"x" * 5000))) == [b"image"]


@pytest.mark.parametrize(
    "header",
    [
        b"content-disposition: form-data; name=images; filename=a",
        b'CONTENT-DISPOSITION: form-data; filename=""; name="images"',
        b"Content-Disposition: form-data; name=\"images\"; filename*=UTF-8''b.png; filename=b.png",
        b'Content-Type: image/png\r\nContent-Disposition: form-data; name="images"; filename="a;b.png"',
        b"Content-Disposition: form-data; name=\"image\"; filename*=UTF-8''uhr%E2%82%AC.jpg",
        b"Content-Disposition: form-data; name=image; FILENAME*=\"utf-8'de'uhr.jpg\"",
        b"Content-Disposition: form-data; name=image; filename*0=uhr; filename*1=.jpg",
    ],
)
def test_a_part_with_a_file_name_is_a_file_in_every_header_syntax(header: bytes) -> None:
    assert _read(_body((header, b"image"))) == [b"image"]


def test_a_part_after_a_file_does_not_inherit_its_name() -> None:
    assert _read(_body((_FILE, b"image"), (b"Content-Type: text/plain", b"words"))) == [b"image"]


def test_as_many_files_as_allowed_pass_and_one_more_does_not() -> None:
    three = [(_FILE, b"image")] * 3

    assert len(_read(_body(*three), max_files=3)) == 3
    with pytest.raises(TooManyImagesError):
        _read(_body(*three), max_files=2)


_BEGINNINGS = {
    "JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01",
    "PNG": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "GIF": b"GIF89a\x01\x00\x01\x00\x00\x00\x00",
    "WebP": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    "BMP": b"BM\x3a\x00\x00\x00\x00\x00\x00\x00\x36\x00",
    "TIFF": b"II*\x00\x08\x00\x00\x00\x00\x00\x00\x00",
    "TIFF of the other byte order": b"MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00",
    "BigTIFF": b"II+\x00\x08\x00\x00\x00\x10\x00\x00\x00",
}


@pytest.mark.parametrize("image", _BEGINNINGS.values(), ids=_BEGINNINGS)
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_a_part_with_an_image_signature_is_a_file_without_a_name(image: bytes, step: int) -> None:
    body = _body((_FIELD, b"BMW, GIF or RIFF"), (_FIELD, image), (_FIELD, b"\xff\xd8"), (_FILE, b"image"))
    chunks = [body[start : start + step] for start in range(0, len(body), step)]

    assert _read(*chunks) == [image, b"image"]


def test_text_in_a_quoted_value_is_not_a_file_name() -> None:
    with pytest.raises(NoImagesError):
        _read(_body((b'Content-Disposition: form-data; name="a; filename*=b; filename=c"', b"image")))


def test_a_file_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    assert _read(_body((_FILE, b"x" * 100)), max_file_bytes=100) == [b"x" * 100]
    [error] = _read(_body((_FILE, b"x" * 101)), max_file_bytes=100)
    assert isinstance(error, ImageTooLargeError)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        (b"filename=a.png", "The image a.png is"),
        (b'filename="a\\"b;.png"', 'The image a"b;.png is'),
        (b"filename=plain.png; filename*=UTF-8''uhr%E2%82%AC.png", "The image uhr€.png is"),
        (b"filename*=iso-8859-1'en'%A3.png", "The image £.png is"),
        (b"filename*=rot13''a.png", "The image a.png is"),
        (b'filename=""', "The image is"),
        (b'filename="\x1b[31m\xff.png"', "The image ?[31m\N{REPLACEMENT CHARACTER}.png is"),
        (b"filename=" + b"x" * 500, f"The image {'x' * 100} is"),
    ],
)
def test_the_error_of_a_file_that_is_too_large_states_its_size_and_other_files_are_kept(
    parameters: bytes, named: str
) -> None:
    large = (b"Content-Disposition: form-data; name=images; " + parameters, b"x" * 1_230_000)
    before, error, after = _read(_body((_FILE, b"one"), large, (_FILE, b"two")), max_file_bytes=100)

    assert (before, after) == (b"one", b"two")
    assert str(error) == f"{named} larger than 100 bytes: it has 1.23 MB."


def test_the_bytes_of_a_file_that_is_too_large_are_discarded() -> None:
    parts = FileParts(_BOUNDARY, max_files=1, max_file_bytes=1_000_000)
    parts.feed(b"--%b\r\n%b\r\n\r\n" % (_BOUNDARY, _FILE))
    tracemalloc.start()
    try:
        for _ in range(100):
            parts.feed(b"x" * 100_000)
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert current < 100_000
    assert peak < 3_000_000


def test_a_body_without_files_is_refused() -> None:
    with pytest.raises(NoImagesError):
        _read(_body((_FIELD, b"hello")))


@pytest.mark.parametrize("length", [0, 5, 60, -1, -5, -20])
def test_a_body_that_ends_early_is_malformed(length: int) -> None:
    body = _body((_FILE, b"image")).removesuffix(b"-\r\n")

    with pytest.raises(MalformedMultipartError):
        _read(body[:length])


@pytest.mark.parametrize(
    "boundary", [b"", b"another", b"x" * 5000, b"\x00\xff"], ids=["none", "another", "long", "garbage"]
)
def test_a_body_with_another_boundary_is_malformed(boundary: bytes) -> None:
    with pytest.raises(MalformedMultipartError):
        _read(_body((_FILE, b"image")), boundary=boundary)


def test_a_few_fields_are_ignored_and_too_many_are_refused() -> None:
    few = [(_FIELD, b"")] * 16

    assert _read(_body(*few, (_FILE, b"image"))) == [b"image"]
    with pytest.raises(MalformedMultipartError):
        _read(_body(*few, (_FIELD, b""), (_FILE, b"image")))


def test_a_long_header_is_refused_even_if_it_is_received_byte_by_byte() -> None:
    endless = b"--%b\r\nX-Long: " % _BOUNDARY + b"a" * 50_000

    with pytest.raises(MalformedMultipartError, match="eader"):
        _read(*(bytes([byte]) for byte in endless))


@pytest.mark.parametrize(
    "header",
    [b"X-Long: " + b"x" * 9000, b"X" * 9000 + b": long", b"\r\n".join([b"X-More: " + b"x" * 90] * 100)],
    ids=["a long value", "a long name", "many headers"],
)
def test_the_headers_of_a_part_have_a_limit(header: bytes) -> None:
    with pytest.raises(MalformedMultipartError, match="Maximum header"):
        _read(_body((_FILE + b"\r\n" + header, b"image")))


def _fed_bytes(parts: FileParts, body: bytes) -> int:
    """How many bytes of `body` are fed until they are refused."""
    for start in range(0, len(body), PIECE_BYTES):
        try:
            parts.feed(body[start : start + PIECE_BYTES])
        except MalformedMultipartError:
            return start + PIECE_BYTES
    return 2 * len(body)


@pytest.mark.parametrize("blank", [b" ", b"\t"])
@pytest.mark.parametrize("before", [500, PIECE_BYTES, PIECE_BYTES + 5], ids=["within", "at the end of", "between"])
def test_spaces_after_a_boundary_are_refused_before_megabytes_of_them_are_parsed(blank: bytes, before: int) -> None:
    """The parser looks at each of them: 64 MiB would take half a minute. `before`: bytes until the end of the boundary,
    which is within a piece, or not."""
    head, last = b"--%b\r\n%b\r\n\r\n" % (_BOUNDARY, _FILE), b"\r\n--" + _BOUNDARY
    first = head + b"x" * (before - len(head) - len(last)) + last
    parts = FileParts(_BOUNDARY, max_files=8, max_file_bytes=100_000)

    assert _fed_bytes(parts, first + blank * 2_000_000) <= 2 * PIECE_BYTES


def test_a_boundary_with_one_space_behind_it_is_refused() -> None:
    with pytest.raises(MalformedMultipartError, match="spaces after a boundary"):
        _read(b"--%b\r\n%b\r\n\r\nimage\r\n--%b \r\n" % (_BOUNDARY, _FILE, _BOUNDARY))


def test_a_part_full_of_its_boundary_is_refused_before_megabytes_of_it_are_parsed() -> None:
    """The parser looks at the bytes of each again, to find that it is none."""
    parts = FileParts(b"b", max_files=8, max_file_bytes=10_000_000)
    head = b"--b\r\n" + _FILE + b"\r\n\r\n"

    assert _fed_bytes(parts, head + b"\r\n--b?" * 300_000) <= PIECE_BYTES


@pytest.mark.parametrize("before", range(PIECE_BYTES - 2, PIECE_BYTES + 16))
def test_one_space_behind_a_boundary_between_pieces_is_found(before: int) -> None:
    head, last = b"--%b\r\n%b\r\n\r\n" % (_BOUNDARY, _FILE), b"\r\n--" + _BOUNDARY
    body = head + b"x" * (before - len(head) - len(last)) + last + b" \r\n" + _FILE
    parts = FileParts(_BOUNDARY, max_files=8, max_file_bytes=100_000)

    assert _fed_bytes(parts, body) <= 2 * PIECE_BYTES


def test_boundaries_between_pieces_count() -> None:
    parts = FileParts(b"b", max_files=8, max_file_bytes=10_000_000)
    parts.feed(b"--b\r\n" + _FILE + b"\r\n\r\n")
    # Each boundary comes in two pieces.
    for _ in range(20):
        parts.feed(b"?\r\n-")
        parts.feed(b"-b")
    with pytest.raises(MalformedMultipartError, match="more boundaries than parts"):
        parts.feed(b"?\r\n--b" * 10)
