"""One table of image formats is followed by everything that names them."""

from __future__ import annotations

import re

import pytest

import models.images.pillow_reading  # noqa: F401 - registers the writer of HEIC
from app.api.inference import IMAGE_BODY
from models.images import formats
from models.images.formats import FORMATS, PILLOW_NAMES, SIGNATURE_BYTES, format_of, is_image
from models.images.samples import draw, encode
from models.interface.errors import UnsupportedFormatError


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_each_format_is_recognized_by_its_first_bytes(name: str) -> None:
    beginning = encode(draw("clock"), PILLOW_NAMES[name])[:SIGNATURE_BYTES]
    assert format_of(beginning) == name
    assert is_image(beginning)


def test_text_that_begins_like_a_bmp_is_not_taken_for_an_image() -> None:
    assert format_of(b"BMW is a car") == "BMP"
    assert not is_image(b"BMW is a car")


def test_a_format_that_is_not_in_the_table_is_not_recognized() -> None:
    assert format_of(encode(draw("clock"), "ICO")) is None


@pytest.mark.parametrize("beginning", [b"....ftypisom\0\0\2\0isomiso2avc1", b"....ftypqt  \0\0\0\0qt  "])
def test_a_film_is_no_picture_though_it_begins_with_the_same_kind_of_box(beginning: bytes) -> None:
    assert format_of(beginning) is None
    assert not is_image(beginning)


@pytest.mark.parametrize(
    ("brands", "name"),
    [
        (b"avif\0\0\0\0avifmif1", "AVIF"),
        (b"avis\0\0\0\0avisavif", "AVIF"),
        (b"mif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"mif1\0\0\0\0mif1heicmiaf", "HEIC"),
        (b"heic\0\0\0\0mif1heic", "HEIC"),
        (b"heix\0\0\0\0mif1heix", "HEIC"),
        (b"hevc\0\0\0\0msf1hevc", "HEIC"),
    ],
)
def test_avif_and_heic_are_told_apart_by_the_brands_of_the_file(brands: bytes, name: str) -> None:
    assert format_of(b"\0\0\0\x20ftyp" + brands) == name


def test_without_its_extra_a_heic_is_unsupported_and_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = encode(draw("clock"), "HEIF")
    without = re.compile(rb"(?P<PNG>\x89PNG)", re.DOTALL)
    monkeypatch.setattr(formats, "_SIGNATURE", without)
    with pytest.raises(UnsupportedFormatError, match='HEIC, which needs the extra "heic"'):
        formats.known_format(encoded)


def test_the_openapi_document_lists_the_formats_of_the_table() -> None:
    assert f"({', '.join(FORMATS)})" in IMAGE_BODY["requestBody"]["description"]


def test_a_suffix_belongs_to_one_format() -> None:
    assert len(formats.SUFFIXES) == sum(len(each.suffixes) for each in formats.TABLE)
