"""app/http/problems.py: every error has one row, and internal details are not sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.http import problems
from app.http.problems import INTERNAL_ERROR, TABLE, RequestError, Row, problem, row_of
from models.interface.errors import ForwardError, GradlessError, ImageError, StartError, UndecodableImageError


def _concrete(root: type[Exception]) -> Iterator[type[Exception]]:
    """Yield the leaf classes below `root`: those that are raised."""
    children = root.__subclasses__()
    for child in children:
        yield from _concrete(child)
    if not children:
        yield root


_ANSWERED = [error for error in _concrete(GradlessError) if not issubclass(error, StartError)]
# The rows of the table, and the rows without an exception.
_ROWS = [*TABLE.values(), *(row for row in vars(problems).values() if isinstance(row, Row))]


@pytest.mark.parametrize("error", [*_ANSWERED, *_concrete(RequestError)])
def test_every_error_that_can_be_raised_has_a_row(error: type[Exception]) -> None:
    assert error in TABLE


def test_no_row_is_for_an_error_that_stops_the_start_or_is_never_raised() -> None:
    assert set(TABLE) == {*_ANSWERED, *_concrete(RequestError)}


def test_each_type_has_one_status_and_title() -> None:
    meanings = {(row.type, row.status, row.title) for row in _ROWS}

    assert len(meanings) == len({row.type for row in _ROWS})


def test_only_internal_errors_share_a_type() -> None:
    types = [row.type for row in _ROWS if row.type != INTERNAL_ERROR.type]

    assert len(types) == len(set(types))


def test_image_errors_are_client_errors_and_counted() -> None:
    assert all(400 <= TABLE[error].status < 500 for error in _concrete(ImageError))
    assert all(TABLE[error].reason for error in _concrete(ImageError))


def test_types_are_urns_of_plain_words() -> None:
    for row in _ROWS:
        assert row.type == f"urn:gradless:problem:{row.slug}"
        assert row.slug.replace("-", "").isalpha()


@pytest.mark.parametrize("error", [ForwardError("m", "/secret/path"), ValueError("/secret/path"), GradlessError("x")])
def test_an_internal_error_leaks_no_detail(error: Exception) -> None:
    body = problem(row_of(error), str(error), "id-1")

    assert body.status == 500
    assert body.detail is None
    assert body.request_id == "id-1"


def test_a_client_error_has_its_detail() -> None:
    error = UndecodableImageError("PNG", "it is cut short")
    body = problem(row_of(error), str(error), None)

    assert body.status == 422
    assert body.detail == "The PNG image cannot be decoded: it is cut short."
