"""The form of log lines, whoever wrote them."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from app.logs import line_formatter, logs_json


def record(message: str, **more: Any) -> logging.LogRecord:
    values = {"name": "models.batching", "levelno": logging.ERROR, "levelname": "ERROR", "msg": message}
    return logging.makeLogRecord(values | more)


def raised() -> Any:
    """An exception out of a frame that holds what is nobody's business."""
    secret = bytes(range(97, 114))
    try:
        return {}[len(secret)]
    except LookupError as error:
        return type(error), error, error.__traceback__


def test_a_line_for_machines_is_one_object_of_json_with_what_the_record_carries() -> None:
    line = line_formatter(json=True).format(record("a batch of %d failed\nin two lines", args=(3,), model="m"))

    assert "\n" not in line
    said = json.loads(line)
    assert said.pop("timestamp").endswith("Z")
    assert said == {
        "event": "a batch of 3 failed\nin two lines",
        "level": "error",
        "logger": "models.batching",
        "model": "m",
    }


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "console"])
def test_an_exception_is_told_with_its_traceback_and_without_the_variables_of_its_frames(*, as_json: bool) -> None:
    line = line_formatter(json=as_json).format(record("failed", exc_info=raised()))

    assert "KeyError: 17" in line
    assert "in raised" in line
    assert "abcdefgh" not in line


def test_a_line_for_people_has_names_and_values_in_columns() -> None:
    line = line_formatter(json=False, colors=False).format(record("request", status=200))

    assert line.split()[1:] == ["[error", "]", "request", "[models.batching]", "status=200"]


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "console"])
def test_what_uvicorn_sends_along_for_its_own_formatter_is_left_out(*, as_json: bool) -> None:
    line = line_formatter(json=as_json).format(record("Started", color_message="Started \x1b[36m"))

    assert "color_message" not in line


@pytest.mark.parametrize(("form", "terminal", "expected"), [
    ("auto", True, False), ("auto", False, True), ("json", True, True), ("console", False, False),
])  # fmt: skip
def test_lines_are_json_unless_somebody_is_likely_to_look(
    monkeypatch: pytest.MonkeyPatch, form: Any, *, terminal: bool, expected: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)

    assert logs_json(form) is expected
