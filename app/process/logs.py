"""Configure logging: every line on stderr in one format, JSON for machines or columns for a terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from app.process.log_writer import DropReason, LineWriter, PrintedText

if TYPE_CHECKING:
    # app.settings imports modules that log.
    from app.settings import LogFormat

_log = logging.getLogger(__name__)

# Name of the logger that writes one line per request.
REQUESTS = "gradless.requests"

# Extra fields that libraries add for their own formatters: uvicorn's coloured message, Ray's timestamp.
_IGNORED_FIELDS = frozenset({"color_message", "_ray_timestamp_ns"})

# Attributes of a record that are not extra fields.
_RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"} | _IGNORED_FIELDS

# ANSI escape sequences of the console format.
_RESET, _BOLD, _DIM = "\x1b[0m", "\x1b[1m", "\x1b[2m"
_RED, _GREEN, _YELLOW, _BLUE, _MAGENTA, _CYAN = (f"\x1b[{number}m" for number in range(31, 37))
_LEVEL_COLORS = {"debug": _GREEN, "info": _GREEN, "warning": _YELLOW}


def configure_logging(level: str, form: LogFormat) -> None:
    """Write log records from `level` on, Python warnings and all printed text to stderr, from a background thread.

    A log that cannot be written loses lines; requests are neither delayed nor failed.
    """
    handler: logging.Handler
    try:
        handler = _QueuedLines(sys.stderr.fileno())
    except OSError:
        # Ray or a test has replaced stderr by an object without a file descriptor, and writes the text itself.
        handler = logging.StreamHandler(sys.stderr)
    else:
        # Libraries print to both streams; PyTorch does so when it downloads weights.
        sys.stdout = sys.stderr = PrintedText(handler.writer, sys.stderr)
    handler.setFormatter(line_formatter(json=logs_json(form), colors=sys.stderr.isatty()))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # It logs a line for each malformed body; the request's own line already has the problem.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # Do not collect what no line contains: source location, thread, process (Python's logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001 - the documented way to disable it
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def open_standard_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that the parent process has closed.

    Otherwise the next file or socket gets the free number, and text for stderr is written to it.
    """
    for number, mode in enumerate("rww"):
        try:
            os.fstat(number)
        except OSError:
            # `open` returns the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open
            setattr(sys, ("stdin", "stdout", "stderr")[number], stream)


def dropped_lines() -> Mapping[DropReason, int]:
    """Return the number of lines that this process logged but did not write, by reason."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _QueuedLines):
            return handler.writer.dropped
    return dict.fromkeys(get_args(DropReason), 0)


def exit_at_once(status: int) -> NoReturn:
    """Write the queued log lines, then end the process without joining its threads."""
    logging.shutdown()
    os._exit(status)


def line_formatter(*, json: bool, colors: bool = False) -> logging.Formatter:
    """Return the formatter for JSON lines, or for console lines with or without ANSI colours."""
    return _JsonLines() if json else _ConsoleLines(colors=colors)


def logs_json(form: LogFormat) -> bool:
    """Return whether the format is JSON; `auto` is JSON unless stderr is a terminal."""
    return form == "json" or (form == "auto" and not sys.stderr.isatty())


class _QueuedLines(logging.Handler):
    """Formats records in the logging thread, so that the queue holds no objects of a request, and queues the lines."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.writer = LineWriter(descriptor, self._lost_line)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - logging must not fail its caller, whatever a record contains
            self.handleError(record)
        else:
            self.writer.put(f"{line}\n")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Count the line as dropped; the base class would print a traceback."""
        del record
        self.writer.drop("error")

    def close(self) -> None:
        self.writer.close()
        super().close()

    def _lost_line(self, lost: int) -> str | None:
        if not _log.isEnabledFor(logging.WARNING):
            return None
        record = _log.makeRecord(
            _log.name, logging.WARNING, "", 0, "log lines were dropped", (), None, extra={"lines": lost}
        )
        return f"{self.format(record)}\n"


class _JsonLines(logging.Formatter):
    """One JSON object per line: event, level, logger, extra fields, UTC timestamp, exception."""

    def __init__(self) -> None:
        super().__init__()
        self._encode = json.JSONEncoder(default=repr).encode
        # The last second and its text, because many lines share a second.
        self._latest = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        line = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        line.update(_extra_fields(record))
        line["timestamp"] = self._time(record.created)
        if record.exc_info:
            # Plain text, because structured tracebacks include local variables, images among them.
            line["exception"] = self.formatException(record.exc_info)
        return self._encode(line)

    def _time(self, created: float) -> str:
        second, text = self._latest
        if second != int(created):
            second = int(created)
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._latest = (second, text)
        return f"{text}.{int((created - second) * 1e6):06}Z"


class _ConsoleLines(logging.Formatter):
    """One line per record: local time, level, event, logger and `name=value` pairs; then the traceback, if any."""

    def __init__(self, *, colors: bool) -> None:
        super().__init__()
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        columns = [
            self._paint(time.strftime("%H:%M:%S", time.localtime(record.created)), _DIM),
            f"[{self._paint(f'{level:9}', _LEVEL_COLORS.get(level, _RED))}]",
            self._paint(record.getMessage(), _BOLD),
            f"[{self._paint(record.name, _BLUE)}]",
        ]
        for name, value in _extra_fields(record).items():
            columns.append(f"{self._paint(name, _CYAN)}={self._paint(_console_value(value), _MAGENTA)}")
        line = " ".join(columns)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def _paint(self, text: str, color: str) -> str:
        return f"{color}{text}{_RESET}" if self._colors else text


def _console_value(value: object) -> str:
    # Quote whatever would be ambiguous between other pairs, or could control the terminal.
    if isinstance(value, str) and value.isprintable() and not set(value) & set(" ='\""):
        return value
    return repr(value)


def _extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _RECORD_ATTRIBUTES}
