"""How this process logs: one form for every line, whoever wrote it. JSON for machines, columns for a terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import structlog
from structlog.typing import EventDict, WrappedLogger

from app.process.log_writer import DropReason, LineWriter, PrintedText

if TYPE_CHECKING:
    # Settings import what logs.
    from app.settings import LogFormat

_log = logging.getLogger(__name__)

# The logger of requests.
REQUESTS = "gradless.requests"

# Of the place where somebody looks.
_CLOCK = "%H:%M:%S"

# What others send along for themselves: uvicorn what its own formatter would have shown, Ray a time of its own.
_FOR_OTHERS = frozenset({"color_message", "_ray_timestamp_ns"})

# Of a record's attributes: what every one has, and that.
_NOT_SENT_ALONG = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"} | _FOR_OTHERS


def configure_logging(level: str, form: LogFormat) -> None:
    """Let everything from `level` on that goes through `logging`, warnings too, end as lines on stderr, and whatever is
    printed. A thread writes them: a log that cannot be written loses lines, nothing else."""
    handler: logging.Handler
    try:
        handler = _QueuedLines(sys.stderr.fileno())
    except OSError:
        # Something else has taken the place of stderr, as Ray or a test may, and sees to what is written to it.
        handler = logging.StreamHandler(sys.stderr)
    else:
        # Libraries print to either, as PyTorch does when it downloads weights.
        sys.stdout = sys.stderr = PrintedText(handler.writer, sys.stderr)
    handler.setFormatter(line_formatter(json=logs_json(form), colors=sys.stderr.isatty()))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # A line for each body that cannot be read, whose problem stands in the line of its request.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # What no line has: the caller's place in the code, threads and processes (Python's logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001 - that is how it is to be said
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def dropped_lines() -> Mapping[DropReason, int]:
    """Lines that this process has logged and not written, by reason."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _QueuedLines):
            return handler.writer.dropped
    return dict.fromkeys(get_args(DropReason), 0)


def exit_at_once(status: int) -> NoReturn:
    """End the process without waiting for its threads, once the log is written."""
    logging.shutdown()
    os._exit(status)


def line_formatter(*, json: bool, colors: bool = False) -> logging.Formatter:
    """Makes lines of records, those of `logging` and of others: JSON, or columns for people."""
    return _JsonLines() if json else _columns(colors=colors)


def logs_json(form: LogFormat) -> bool:
    """Whether that form is JSON: `auto` is, unless a person is likely to look."""
    return form == "json" or (form == "auto" and not sys.stderr.isatty())


class _QueuedLines(logging.Handler):
    """Makes the lines where they are logged, so that the queue holds no objects of a request, and has them written."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.writer = LineWriter(descriptor, self._lost_line)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler has it: a line that cannot be made ends nothing else
            self.handleError(record)
        else:
            self.writer.put(f"{line}\n")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Count the line; logging's own would print a traceback."""
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


def _sent_along(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _NOT_SENT_ALONG}


def _without_extras_of_others(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name in _FOR_OTHERS:
        event.pop(name, None)
    return event
