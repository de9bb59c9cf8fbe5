"""Format of log lines: JSON and console."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

import pytest

from app.process.logs import REQUESTS, configure_logging, dropped_lines, line_formatter, logs_json

_requests = logging.getLogger(REQUESTS)


def record(message: str, **more: Any) -> logging.LogRecord:
    values = {"name": "models.scheduling.batcher", "levelno": logging.ERROR, "levelname": "ERROR", "msg": message}
    return logging.makeLogRecord(values | more)


def raised() -> Any:
    """Return exc_info of an exception whose frame holds a secret."""
    secret = bytes(range(97, 114))
    try:
        return {}[len(secret)]
    except LookupError as error:
        return type(error), error, error.__traceback__


def test_a_json_line_is_one_object_with_the_fields_of_the_record() -> None:
    line = line_formatter(json=True).format(record("a batch of %d failed\nin two lines", args=(3,), model="m"))

    assert "\n" not in line
    fields = json.loads(line)
    assert fields.pop("timestamp").endswith("Z")
    assert fields == {
        "event": "a batch of 3 failed\nin two lines",
        "level": "error",
        "logger": "models.scheduling.batcher",
        "model": "m",
    }


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "console"])
def test_an_exception_is_logged_with_its_traceback_but_without_local_variables(*, as_json: bool) -> None:
    line = line_formatter(json=as_json).format(record("failed", exc_info=raised()))

    assert "KeyError: 17" in line
    assert "in raised" in line
    assert "abcdefgh" not in line


def test_a_console_line_has_time_level_event_logger_and_pairs() -> None:
    form = line_formatter(json=False, colors=False)
    line = form.format(record("request", created=0.0, status=200, path="/v1", title="two words"))

    clock = time.strftime("%H:%M:%S", time.localtime(0))
    expected = f"{clock} [error    ] request [models.scheduling.batcher] status=200 path=/v1 title='two words'"
    assert line == expected


def test_a_coloured_console_line_differs_from_a_plain_one_only_by_colours() -> None:
    plain, coloured = (line_formatter(json=False, colors=colors) for colors in (False, True))
    line = record("request", status=200)

    assert "\x1b[31merror" in coloured.format(line)
    assert re.sub("\x1b\\[[0-9]+m", "", coloured.format(line)) == plain.format(line)


def test_a_console_line_escapes_values_that_could_control_the_terminal() -> None:
    assert "\x1b" not in line_formatter(json=False).format(record("request", path="/\x1b[2J"))


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "console"])
def test_fields_for_uvicorns_own_formatter_are_left_out(*, as_json: bool) -> None:
    line = line_formatter(json=as_json).format(record("Started", color_message="Started \x1b[36m"))

    assert "color_message" not in line


@pytest.mark.parametrize(("form", "terminal", "expected"), [
    ("auto", True, False), ("auto", False, True), ("json", True, True), ("console", False, False),
])  # fmt: skip
def test_auto_means_json_unless_stderr_is_a_terminal(
    monkeypatch: pytest.MonkeyPatch, form: Any, *, terminal: bool, expected: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)

    assert logs_json(form) is expected


class _Written:
    """Reads what this process has logged, after the log is flushed."""

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
    """Configure logging as `gradless serve` does, to a file."""
    root = logging.getLogger()
    handlers, level, options = root.handlers[:], root.level, (logging._srcfile, logging.logThreads)  # noqa: SLF001
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdout", sys.stdout)
        monkeypatch.setattr("sys.stderr", file)
        # Otherwise pytest's own handler raises for the line that cannot be formatted.
        monkeypatch.setattr(logging, "raiseExceptions", False)
        configure_logging("info", "json")
        yield _Written(file)
        logging.shutdown()
    root.handlers, root.level = handlers, level
    logging._srcfile, logging.logThreads = options  # noqa: SLF001
    logging.logProcesses = logging.logMultiprocessing = True
    logging.captureWarnings(capture=False)


def test_lines_of_all_threads_are_written_in_logging_order(written: _Written) -> None:
    async def log_from_two_threads() -> None:
        _requests.info("of the loop")
        thread = threading.Thread(target=_requests.info, args=("of a thread",))
        thread.start()
        thread.join()
        logging.getLogger("app.server.server").info("of another module")

    asyncio.run(log_from_two_threads())

    assert written.events() == ["of the loop", "of a thread", "of another module"]


def test_records_below_the_level_are_not_written(written: _Written) -> None:
    _requests.debug("a probe")
    _requests.info("a request")

    assert written.events() == ["a request"]


def test_a_record_that_cannot_be_formatted_is_counted_and_later_lines_are_written(written: _Written) -> None:
    _requests.info("%d", "not a number")
    assert dropped_lines() == {"full": 0, "error": 1}
    _requests.info("the next")

    assert written.events() == ["the next", "log lines were dropped"]


def test_dropped_lines_are_not_reported_if_warnings_are_not_logged(written: _Written) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    _requests.error("%d", "not a number")
    _requests.error("the next")

    assert written.events() == ["the next"]


def test_the_timestamp_is_the_time_of_the_record_in_utc_with_microseconds() -> None:
    form = line_formatter(json=True)
    moments = [1_700_000_000.25, 1_700_000_000.75, 1_700_000_001.0]

    times = [json.loads(form.format(record("now", created=moment)))["timestamp"] for moment in moments]

    assert times == ["2023-11-14T22:13:20.250000Z", "2023-11-14T22:13:20.750000Z", "2023-11-14T22:13:21.000000Z"]
