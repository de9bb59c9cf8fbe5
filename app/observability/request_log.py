"""Write one log line per request, and one line per second for all requests that load shedding refuses."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from starlette.types import Scope

from app.http.hosts import PROBES
from app.http.problems import Row
from app.observability.request_record import RequestRecord
from app.process.logs import REQUESTS

_log = logging.getLogger(REQUESTS)

# Logged at debug level: probes and scrapers request these every few seconds, browsers with each view of the page.
_ROUTINE = ("/metrics", "/")
_ROUTINE_FOLDER = "/page/"

# Interval of the line about shed requests: a line each would cost as much as the refusal itself.
_SHED_LINE_S = 1.0

# Longer paths are cut; paths of the API are far shorter.
_MAX_PATH_CHARACTERS = 200


class RequestLog:
    """Logs requests. A request with inference that takes longer than `slow_request_s` is logged as a warning."""

    def __init__(self, slow_request_s: float) -> None:
        self._slow_request_s = slow_request_s
        # By problem, status and model.
        self._shed: Counter[tuple[str | None, int, str | None]] = Counter()
        self._shed_line: asyncio.TimerHandle | None = None

    def log_request(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        """Log a request that was answered, or whose client disconnected.

        Images, queries and headers are never logged: they may be private or hold keys.
        """
        slow = record.model is not None and seconds > self._slow_request_s
        level = _level(scope, status, slow=slow)
        if not _log.isEnabledFor(level):
            return
        # Fields that are None are left out.
        fields: dict[str, Any] = {
            "method": scope["method"],
            "path": _path(scope),
            "status": status,
            "problem": record.problem,
            "slow": slow or None,
            "model": record.model,
            "task": record.task,
            "images": record.images or None,
            "batch_size": record.batch_size,
            "body_bytes": record.body_bytes or None,
            **{f"{stage}_ms": _ms(spent) for stage, spent in record.stage_seconds().items()},
            "total_ms": _ms(seconds),
            "client": scope["client"][0] if scope.get("client") else None,
            "request_id": record.request_id,
            "trace_id": record.trace.trace_id if record.trace else None,
        }
        _log.log(level, "request", extra={name: value for name, value in fields.items() if value is not None})

    def log_shed(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        """Log a request that was refused at its headers: by a line of its own at debug level, else by adding to a count
        that is logged once a second. Event loop only."""
        if _log.isEnabledFor(logging.DEBUG):
            self.log_request(scope, record, status, seconds)
            return
        self._shed[record.problem, status, record.model] += 1
        if self._shed_line is None:
            self._shed_line = asyncio.get_running_loop().call_later(_SHED_LINE_S, self.close)

    def close(self) -> None:
        """Log the requests counted so far."""
        if self._shed_line is not None:
            self._shed_line.cancel()
            self._shed_line = None
        for (problem, status, model), count in self._shed.items():
            _log.info(
                "requests refused", extra={"status": status, "problem": problem, "model": model, "requests": count}
            )
        self._shed.clear()


def log_refused_connection(client: str | None, row: Row, request_id: str) -> None:
    """Log bytes that did not become a request: the head was too long, too slow, or not HTTP."""
    extra = {"client": client, "status": row.status, "problem": row.slug, "request_id": request_id}
    _log.info("request", extra=extra)


def _level(scope: Scope, status: int, *, slow: bool) -> int:
    if status >= 500:  # noqa: PLR2004 - server errors start here
        # 500 is a bug of the server; 503 and 504 mean overload, or that the server is stopping.
        return logging.ERROR if status == 500 else logging.WARNING  # noqa: PLR2004
    if slow:
        return logging.WARNING
    path = scope["path"]
    read = scope["method"] != "POST" and (path in _ROUTINE or path.startswith(_ROUTINE_FOLDER))
    routine = status < 400 and (read or path in PROBES)  # noqa: PLR2004
    return logging.DEBUG if routine else logging.INFO


def _path(scope: Scope) -> str:
    # Still percent-encoded: a decoded path could hold line breaks or escape sequences for a terminal.
    path = scope.get("raw_path", b"")[:_MAX_PATH_CHARACTERS].decode("ascii", "backslashreplace")
    return path if path.isprintable() else repr(path)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
