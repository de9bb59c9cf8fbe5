"""How this process logs: one form for every line, whoever wrote it. JSON for machines, columns for a terminal."""

from __future__ import annotations

import asyncio
import json
import logging
import select
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from app.settings import LogFormat

# The logger of requests.
REQUESTS = "gradless.requests"

# Of the place where somebody looks.
_CLOCK = "%H:%M:%S"

# What others send along for themselves: uvicorn what its own formatter would have shown, Ray a time of its own.
_FOR_OTHERS = frozenset({"color_message", "_ray_timestamp_ns"})

# Of a record's attributes: what every one has, and that.
_NOT_SENT_ALONG = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"} | _FOR_OTHERS


def configure_logging(level: str, form: LogFormat, *, shared: bool = False) -> None:
    """Let everything from `level` on that goes through `logging`, warnings too, end as lines on stderr; `shared`: with
    those of other processes."""
    handler = _GatheredLines(sys.stderr, select.PIPE_BUF if shared else None)
    handler.setFormatter(line_formatter(json=logs_json(form), colors=sys.stderr.isatty()))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # A line for each body that cannot be read, whose problem stands in the line of its request.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # What no line has: the caller's place in the code, threads and processes (Python's logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001 - that is how it is to be said
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def line_formatter(*, json: bool, colors: bool = False) -> logging.Formatter:
    """Makes lines of records, those of `logging` and of others: JSON, or columns for people."""
    return _JsonLines() if json else _columns(colors=colors)


def logs_json(form: LogFormat) -> bool:
    """Whether that form is JSON: `auto` is, unless a person is likely to look."""
    return form == "json" or (form == "auto" and not sys.stderr.isatty())


class _GatheredLines(logging.StreamHandler[TextIO]):
    """Writes the lines of requests that end in one turn of the event loop together, at its end, and all others at once.
    A batch is answered in one turn; at each write the loop gives the GIL away, and waits to get it back."""

    def __init__(self, stream: TextIO, at_once: int | None) -> None:
        """`at_once`: bytes that the kernel writes in one piece, whoever else is writing."""
        super().__init__(stream)
        self._at_once = at_once
        self._waiting: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + self.terminator
        except Exception:  # noqa: BLE001 - as every handler has it: a line that cannot be made ends nothing else
            self.handleError(record)
            return
        self._waiting.append(line)
        loop = _running_loop() if record.name == REQUESTS else None
        if loop is None:
            self.flush()
        elif len(self._waiting) == 1:
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what waits."""
        with self.lock or nullcontext():
            waiting, self._waiting = self._waiting, []
            for piece in _pieces(waiting, self._at_once):
                self.stream.write(piece)
                super().flush()


def _pieces(lines: list[str], at_once: int | None) -> Iterator[str]:
    """The lines together, or as many of them in a piece as are written at once."""
    piece: list[str] = []
    size = 0
    for line in lines:
        # JSON of ours is ASCII; columns may be more.
        line_size = len(line) if at_once is None or line.isascii() else len(line.encode())
        if piece and at_once is not None and size + line_size > at_once:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += line_size
    if piece:
        yield "".join(piece)


class _JsonLines(logging.Formatter):
    """An object a line: the event, what was sent along with it, and when it was, in UTC. The event loop writes one for
    each request, and through structlog, which makes the columns, it would cost the loop more."""

    def __init__(self) -> None:
        super().__init__()
        self._encode = json.JSONEncoder(default=repr).encode
        # A second and its text. Many lines are of the same.
        self._latest = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        told = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        told.update(_sent_along(record))
        told["timestamp"] = self._time(record.created)
        if record.exc_info:
            # As text: a structure of it would have the variables of each frame, images among them.
            told["exception"] = self.formatException(record.exc_info)
        return self._encode(told)

    def _time(self, created: float) -> str:
        second, text = self._latest
        if second != int(created):
            second = int(created)
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._latest = (second, text)
        return f"{text}.{int((created - second) * 1e6):06}Z"


def _columns(*, colors: bool) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            _without_extras_of_others,
            structlog.processors.TimeStamper(_CLOCK, utc=False),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.dev.ConsoleRenderer(
                colors=colors,
                pad_event_to=0,
                # What was asked and what came of it first, as it is told.
                sort_keys=False,
                # The usual ones show local variables, images among them.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ],
    )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _sent_along(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _NOT_SENT_ALONG}


def _without_extras_of_others(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name in _FOR_OTHERS:
        event.pop(name, None)
    return event
