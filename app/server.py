"""The process: uvicorn, told to drain on SIGTERM, to say in one line why it cannot start, and where it serves."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.dependencies import Parts
from app.listening import allow_many_connections, bind, say_serving
from app.logs import exit_at_once
from app.main import create_app
from app.settings import Settings
from app.shedding_connection import shedding_connection
from app.start_failures import PlainStartFailures, refuse_to_start
from models.errors import StartError

_log = logging.getLogger(__name__)

# Beyond it a caller's keep-alive connection is closed; load balancers commonly keep theirs for 60 s.
_KEEP_ALIVE_S = 75

# After so long a thread that runs Python lets others run theirs. The event loop is such a thread, and one that decodes
# comes back to Python a few times an image: at Python's own 5 ms it waits for the loop each time.
_SWITCH_INTERVAL_S = 0.0001

# When the garbage collector comes: after so many objects more, and each older generation after so many collections of
# the younger. Requests leave nothing to it, and a full house is 60,000 objects: to look through them took 0.1 to 0.3 s
# under overload, in which nobody was answered, every 6 s at Python's own 700, 10, 10.
_COLLECT_AFTER = (5_000, 10, 100)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then answer what was accepted. Ends the process when it cannot start."""
    tune_interpreter()
    app = create_app(settings)
    parts: Parts = app.state.parts
    # Before the models are loaded, so that a wrong address is known at once; open to callers only afterwards.
    try:
        listener = bind(settings)
    except StartError as error:
        refuse_to_start(error)
    allow_many_connections()
    server = Server(server_config(app, parts), parts)
    if heeds_hangup():
        # uvicorn itself handles the others.
        signal.signal(signal.SIGHUP, server.handle_exit)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)
    end_without_success(parts.failure)


def tune_interpreter() -> None:
    """Have threads and garbage collector disturb an event loop little."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(*_COLLECT_AFTER)


def heeds_hangup() -> bool:
    """Return False where SIGHUP is ignored, as `nohup` has it."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def server_config(app: FastAPI, parts: Parts) -> uvicorn.Config:
    """How uvicorn serves the application, wherever its connections come from."""
    settings = parts.settings
    return uvicorn.Config(
        PlainStartFailures(app, parts),
        # Where a library for WebSockets happens to be installed, a request to upgrade would leave the bounds of http.
        ws="none",
        http=shedding_connection(settings.read_timeout_s, parts.metrics.refused_by_connection, app.state.shedding),
        log_config=None,
        access_log=False,
        server_header=False,
        # Nobody's X-Forwarded-For is believed, or looked for.
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        # uvicorn takes whole seconds; rounded up, so that an accepted request has its whole time
        timeout_graceful_shutdown=max(1, int(-(-settings.drain_timeout_s // 1))),
    )


def end_without_success(failure: str | None) -> None:
    """End the process with status 1 if there is a reason to."""
    if failure is not None:
        _log.critical("ended: %s", failure)
        # Not sys.exit: Python would wait for the very thread that hangs.
        exit_at_once(1)


class Server(uvicorn.Server):
    """uvicorn's, that drains, and tells at that level of log that it does."""

    told_at = logging.INFO

    def __init__(self, config: uvicorn.Config, parts: Parts) -> None:
        super().__init__(config)
        self._parts = parts

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, and say so."""
        await super().startup(sockets=sockets)
        if self.started:
            say_serving(self._parts.settings, self.servers[0].sockets[0])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain."""
        # Not uvicorn's own, which would end the process by the signal: having drained is a success, status 0.
        del frame
        _log.log(self.told_at, "%s: answering what was accepted, then stopping", signal.Signals(sig).name)
        if self._parts.runtime is None:
            # Nothing has been accepted. An exception would be lost in the load that this has interrupted.
            exit_at_once(0)
        # Before the socket closes: who comes now is told so.
        self._parts.runtime.drain()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
