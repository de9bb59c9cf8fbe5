"""One table of image formats is followed by everything that names them."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from PIL import Image, features

from app.api.inference import IMAGE_BODY
from models.images import formats
from models.images.formats import FORMATS, SIGNATURE_BYTES, TITLES, format_of, is_image
from models.images.samples import draw, encode


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_each_format_is_recognized_by_its_first_bytes(name: str) -> None:
    beginning = encode(draw("clock"), name)[:SIGNATURE_BYTES]
    assert format_of(beginning) == name
    assert is_image(beginning)


def test_text_that_begins_like_a_bmp_is_not_taken_for_an_image() -> None:
    assert format_of(b"BMW is a car") == "BMP"
    assert not is_image(b"BMW is a car")


def test_each_format_has_a_reader_in_pillow() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_a_format_that_is_not_in_the_table_is_not_recognized() -> None:
    assert format_of(encode(draw("clock"), "AVIF")) is None


def test_the_page_and_the_openapi_document_list_the_formats_of_the_table() -> None:
    page = files("app").joinpath("page", "index.html").read_text(encoding="utf-8")
    [listed] = re.findall(r'<p class="hint">([\w, ]+)\. Nothing that you send is kept', page)
    assert tuple(re.split(", | or ", listed)) == TITLES
    assert f"({', '.join(TITLES)})" in IMAGE_BODY["requestBody"]["description"]


def test_a_suffix_belongs_to_one_format() -> None:
    assert len(formats.SUFFIXES) == sum(len(each.suffixes) for each in formats.TABLE)
