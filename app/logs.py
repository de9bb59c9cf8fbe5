"""How this process logs: one form for every line, whoever wrote it. JSON for machines, columns for a terminal."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.settings import LogFormat

# Of the place where somebody looks.
_CLOCK = "%H:%M:%S"


def configure_logging(level: str, form: LogFormat) -> None:
    """Let everything from `level` on that goes through `logging`, warnings too, end as lines on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(line_formatter(json=logs_json(form), colors=sys.stderr.isatty()))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # A line for each body that cannot be read, whose problem stands in the line of its request.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def line_formatter(*, json: bool, colors: bool = False) -> logging.Formatter:
    """Makes lines of records, those of `logging` and of others: JSON, or columns for people."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            _without_extras_of_others,
            structlog.processors.TimeStamper("iso" if json else _CLOCK, utc=json),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *(_for_machines() if json else _for_people(colors=colors)),
        ],
    )


def logs_json(form: LogFormat) -> bool:
    """Whether that form is JSON: `auto` is, unless a person is likely to look."""
    return form == "json" or (form == "auto" and not sys.stderr.isatty())


def _for_machines() -> list[Processor]:
    # As text: structlog's own structure of an exception has the local variables of each frame, images among them.
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _for_people(*, colors: bool) -> list[Processor]:
    return [
        structlog.dev.ConsoleRenderer(
            colors=colors,
            pad_event_to=0,
            # What was asked and what came of it first, as it is told.
            sort_keys=False,
            # The usual ones show local variables, images among them.
            exception_formatter=structlog.dev.plain_traceback,
        )
    ]


def _without_extras_of_others(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """uvicorn sends along what its own formatter would have shown, Ray a time of its own with every record."""
    event.pop("color_message", None)
    event.pop("_ray_timestamp_ns", None)
    return event
