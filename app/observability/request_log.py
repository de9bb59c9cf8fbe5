"""One line of log for each request, and one a second for those of a flood."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from starlette.types import Scope

from app.http.problems import Row
from app.observability.request_record import RequestRecord
from app.process.logs import REQUESTS

_log = logging.getLogger(REQUESTS)

# Asked for every few seconds by machines, or with each opening of the page.
_ROUTINE = frozenset({"/healthz", "/readyz", "/metrics", "/"})
_ROUTINE_FOLDER = "/page/"

# A flood of lines would cost as much as the refusals that they tell of.
_SHED_LINE_S = 1.0

# As much of a path as tells what was wanted. Those of the API are far shorter.
_MOST_PATH_CHARACTERS = 200


class RequestLog:
    """`slow_request_s`: an answer with a model's work in it that takes longer is a warning."""

    def __init__(self, slow_request_s: float) -> None:
        self._slow_request_s = slow_request_s
        # By problem, status and model.
        self._shed: Counter[tuple[str | None, int, str | None]] = Counter()
        self._shed_line: asyncio.TimerHandle | None = None

    def ended(self, scope: Scope, request: RequestRecord, status: int, seconds: float) -> None:
        """Tell of a request that has been answered, or whose caller has gone. Nothing of an image is told, nor a
        query or a header, which may hold keys."""
        slow = request.model is not None and seconds > self._slow_request_s
        level = _level(scope, status, slow=slow)
        if not _log.isEnabledFor(level):
            return
        # None has no place in the line.
        told: dict[str, Any] = {
            "method": scope["method"],
            "path": _path(scope),
            "status": status,
            "problem": request.problem,
            "slow": slow or None,
            "model": request.model,
            "task": request.task,
            "images": request.images or None,
            "batch_size": request.batch_size,
            "body_bytes": request.held_bytes or None,
            **{f"{stage}_ms": _ms(spent) for stage, spent in request.stage_seconds().items()},
            "total_ms": _ms(seconds),
            "client": scope["client"][0] if scope.get("client") else None,
            "request_id": request.request_id,
            "trace_id": request.trace.trace_id if request.trace else None,
        }
        _log.log(level, "request", extra={name: value for name, value in told.items() if value is not None})

    def shed(self, scope: Scope, request: RequestRecord, status: int, seconds: float) -> None:
        """Tell of a request that was refused at its headers: a line of its own at `debug`, else as one of a count that
        is told once a second. Event loop only."""
        if _log.isEnabledFor(logging.DEBUG):
            self.ended(scope, request, status, seconds)
            return
        self._shed[request.problem, status, request.model] += 1
        if self._shed_line is None:
            self._shed_line = asyncio.get_running_loop().call_later(_SHED_LINE_S, self.close)

    def close(self) -> None:
        """Tell of what has been counted so far."""
        if self._shed_line is not None:
            self._shed_line.cancel()
            self._shed_line = None
        for (problem, status, model), count in self._shed.items():
            _log.info(
                "requests refused", extra={"status": status, "problem": problem, "model": model, "requests": count}
            )
        self._shed.clear()


def refused(client: str | None, row: Row) -> None:
    """Tell of what never became a request: its head was too long, too slow, or not HTTP."""
    _log.info("request", extra={"client": client, "status": row.status, "problem": row.slug})


def _level(scope: Scope, status: int, *, slow: bool) -> int:
    if status >= 500:  # noqa: PLR2004 - what HTTP calls a server error
        # 500 is a fault in here; 503 and 504 say that there is too much to do, or that it is time to go.
        return logging.ERROR if status == 500 else logging.WARNING  # noqa: PLR2004
    if slow:
        return logging.WARNING
    path = scope["path"]
    routine = status < 400 and (path in _ROUTINE or path.startswith(_ROUTINE_FOLDER))  # noqa: PLR2004
    return logging.DEBUG if routine else logging.INFO


def _path(scope: Scope) -> str:
    # As it was sent: a decoded one could hold line ends, or what a terminal obeys.
    path = scope.get("raw_path", b"")[:_MOST_PATH_CHARACTERS].decode("ascii", "backslashreplace")
    return path if path.isprintable() else repr(path)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
