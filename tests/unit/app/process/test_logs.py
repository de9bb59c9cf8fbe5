"""The form of log lines, whoever wrote them."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, Any

import pytest

from app.process.logs import REQUESTS, configure_logging, dropped_lines, line_formatter, logs_json

_requests = logging.getLogger(REQUESTS)


def record(message: str, **more: Any) -> logging.LogRecord:
    values = {"name": "models.scheduling.batcher", "levelno": logging.ERROR, "levelname": "ERROR", "msg": message}
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
        "logger": "models.scheduling.batcher",
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

    assert line.split()[1:] == ["[error", "]", "request", "[models.scheduling.batcher]", "status=200"]


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


class _Written:
    """What this process has logged, once it has been written."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def lines(self) -> list[str]:
        logging.shutdown()
        self._file.seek(0)
        return self._file.read().splitlines()

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.lines()]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Written]:
    """Where the lines of this process go, as a service has it."""
    root = logging.getLogger()
    handlers, level, options = root.handlers[:], root.level, (logging._srcfile, logging.logThreads)  # noqa: SLF001
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdout", sys.stdout)
        monkeypatch.setattr("sys.stderr", file)
        # pytest's own handler raises otherwise.
        monkeypatch.setattr(logging, "raiseExceptions", False)
        configure_logging("info", "json")
        yield _Written(file)
        logging.shutdown()
    root.handlers, root.level = handlers, level
    logging._srcfile, logging.logThreads = options  # noqa: SLF001
    logging.logProcesses = logging.logMultiprocessing = True
    logging.captureWarnings(capture=False)


def test_lines_of_all_threads_are_written_in_the_order_in_which_they_were_logged(written: _Written) -> None:
    async def turn() -> None:
        _requests.info("of the loop")
        thread = threading.Thread(target=_requests.info, args=("of a thread",))
        thread.start()
        thread.join()
        logging.getLogger("app.server.server").info("of another module")

    asyncio.run(turn())

    assert written.events() == ["of the loop", "of a thread", "of another module"]


def test_what_is_below_the_level_is_not_written(written: _Written) -> None:
    _requests.debug("a probe")
    _requests.info("a request")

    assert written.events() == ["a request"]


def test_a_line_that_cannot_be_made_is_counted_and_takes_no_other_with_it(written: _Written) -> None:
    _requests.info("%d", "not a number")
    assert dropped_lines() == {"full": 0, "error": 1}
    _requests.info("the next")

    assert written.events() == ["the next", "log lines were dropped"]


def test_nothing_is_said_of_dropped_lines_where_warnings_are_not_logged(written: _Written) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    _requests.error("%d", "not a number")
    _requests.error("the next")

    assert written.events() == ["the next"]


def test_the_time_of_a_line_is_its_records_in_utc_to_the_microsecond() -> None:
    form = line_formatter(json=True)
    moments = [1_700_000_000.25, 1_700_000_000.75, 1_700_000_001.0]

    times = [json.loads(form.format(record("now", created=moment)))["timestamp"] for moment in moments]

    assert times == ["2023-11-14T22:13:20.250000Z", "2023-11-14T22:13:20.750000Z", "2023-11-14T22:13:21.000000Z"]
