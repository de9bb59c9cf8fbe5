"""Log in one line why the service cannot start."""

from __future__ import annotations

import logging
from typing import NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import Parts
from app.process.logs import exit_at_once
from models.interface.errors import StartError

_log = logging.getLogger(__name__)

# uvicorn's exit status for a failed start.
_STATUS = 3


class PlainStartFailures:
    """Replaces the traceback that Starlette reports for a failed start by one line."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_plain(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self._parts.start_error is not None:
                message["message"] = f"cannot start: {self._parts.start_error}"
            await send(message)

        await self._app(scope, receive, send_plain)


def refuse_to_start(error: Exception) -> NoReturn:
    """Log the reason and end the process, even if other threads are running."""
    _log.error("cannot start: %s", error)
    exit_at_once(_STATUS)


def start_error(error: OSError) -> StartError:
    """Convert an error of the operating system to a StartError."""
    _log.debug("cannot start", exc_info=error)
    file = "" if error.filename is None else f"{error.filename}: "
    return StartError(f"{file}{error.strerror or error}")
