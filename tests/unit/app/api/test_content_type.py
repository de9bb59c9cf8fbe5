"""Content-Type is read up to a length: its parser takes a microsecond for each character."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from app.api.uploads import content_type_of


def test_a_content_type_is_read_with_its_parameters() -> None:
    found = content_type_of(Headers({"content-type": 'Multipart/Form-Data; boundary="x y"'}))
    assert found == (b"multipart/form-data", {b"boundary": b"x y"})


@pytest.mark.parametrize("stated", [{}, {"content-type": ""}, {"content-type": "multipart/form-data; a=" + "x" * 1024}])
def test_an_absent_or_too_long_content_type_is_none(stated: dict[str, str]) -> None:
    assert content_type_of(Headers(stated)) == (b"", {})
