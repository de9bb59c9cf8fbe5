"""The form of log lines, whoever wrote them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import select
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.logs import REQUESTS, configure_logging, line_formatter, logs_json

_requests = logging.getLogger(REQUESTS)


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


class _Writes(io.StringIO):
    """What was written, and how it was cut."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str, /) -> int:
        self.pieces.append(text)
        return len(text)

    def events(self) -> list[list[str]]:
        return [[json.loads(line)["event"] for line in piece.splitlines()] for piece in self.pieces]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Writes]:
    """Where the lines of this process go, as a service has it."""
    root = logging.getLogger()
    handlers, level, options = root.handlers[:], root.level, (logging._srcfile, logging.logThreads)  # noqa: SLF001
    writes = _Writes()
    monkeypatch.setattr("sys.stderr", writes)
    configure_logging("info", "json")
    yield writes
    root.handlers, root.level = handlers, level
    logging._srcfile, logging.logThreads = options  # noqa: SLF001
    logging.logProcesses = logging.logMultiprocessing = True
    logging.captureWarnings(capture=False)


def test_the_lines_of_requests_that_end_in_one_turn_of_the_event_loop_are_written_at_once(written: _Writes) -> None:
    async def turns() -> None:
        _requests.info("first")
        _requests.info("second")
        assert not written.pieces
        await asyncio.sleep(0)
        assert written.events() == [["first", "second"]]
        _requests.info("third")

    asyncio.run(turns())

    assert written.events() == [["first", "second"], ["third"]]


def test_lines_that_share_a_pipe_with_those_of_other_processes_are_written_in_pieces_that_nobody_cuts(
    written: _Writes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", written)
    configure_logging("info", "json", shared=True)

    async def turn() -> None:
        for number in range(100):
            _requests.info("%s, of two bytes each: %s", number, "\u00e9" * 50)
        await asyncio.sleep(0)

    asyncio.run(turn())

    assert 1 < len(written.pieces) < 30
    assert all(len(piece.encode()) <= select.PIPE_BUF and piece.endswith("\n") for piece in written.pieces)
    assert [int(event.partition(",")[0]) for piece in written.events() for event in piece] == list(range(100))


def test_any_other_line_is_written_at_once_behind_those_that_wait(written: _Writes) -> None:
    async def turn() -> None:
        _requests.info("a request")
        logging.getLogger("app.server").info("another")
        assert written.events() == [["a request", "another"]]

    asyncio.run(turn())


def test_a_line_of_another_thread_is_written_at_once_behind_those_that_wait(written: _Writes) -> None:
    async def turn() -> None:
        _requests.info("of the loop")
        thread = threading.Thread(target=_requests.info, args=("of a thread",))
        thread.start()
        thread.join()
        assert written.events() == [["of the loop", "of a thread"]]

    asyncio.run(turn())
    _requests.info("of nobody's loop")

    assert written.events() == [["of the loop", "of a thread"], ["of nobody's loop"]]


def test_what_waits_when_the_process_ends_is_written(written: _Writes) -> None:
    async def turn() -> None:
        _requests.info("the last")
        logging.shutdown()
        assert written.events() == [["the last"]]

    asyncio.run(turn())


def test_a_line_that_cannot_be_made_takes_no_other_with_it(written: _Writes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    _requests.info("%d", "not a number")
    _requests.info("the next")

    assert written.events() == [["the next"]]


def test_the_time_of_a_line_is_its_records_in_utc_to_the_microsecond() -> None:
    form = line_formatter(json=True)
    moments = [1_700_000_000.25, 1_700_000_000.75, 1_700_000_001.0]

    times = [json.loads(form.format(record("now", created=moment)))["timestamp"] for moment in moments]

    assert times == ["2023-11-14T22:13:20.250000Z", "2023-11-14T22:13:20.750000Z", "2023-11-14T22:13:21.000000Z"]
