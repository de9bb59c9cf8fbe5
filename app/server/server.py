"""The process: uvicorn, told to drain on SIGTERM, to say in one line why it cannot start, and where it serves."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from time import perf_counter
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from app.api.dependencies import Parts
from app.main import create_app
from app.middleware.start_failures import PlainStartFailures, refuse_to_start
from app.process.listener import allow_many_connections, bind, log_listening
from app.process.logs import exit_at_once
from app.process.stopping import FORCED_AFTER_DRAIN_S, end_process, end_process_within, ended_by_signals
from app.server.acceptor import Acceptor
from app.server.shedding_connection import shedding_connection
from app.settings import Settings
from models.interface.errors import StartError

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
    server = Server(server_config(app, parts), parts, listener)
    if heeds_hangup():
        # uvicorn itself handles the others.
        signal.signal(signal.SIGHUP, server.handle_exit)
    server.run()
    sys.exit(1)


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


class Server(uvicorn.Server):
    """uvicorn's, that drains, and tells at that level of log that it does. It accepts connections itself: uvicorn would
    reset those that wait in the kernel when it stops, and without file descriptors its event loop would drop them."""

    told_at = logging.INFO

    def __init__(self, config: uvicorn.Config, parts: Parts, listener: socket.socket | None = None) -> None:
        super().__init__(config)
        self._parts = parts
        self._listener = listener
        self._acceptor: Acceptor | None = None
        # Accepted, and no connection of the application's yet.
        self.beginning: set[asyncio.Task[None]] = set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's. Once it has started, the process ends with this: uvicorn's loop would wait for its threads."""
        await super().serve(sockets)
        if self.started:
            end_process(self._parts.failure)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - there are none
        """uvicorn's, but for how connections come."""
        with ended_by_signals():
            await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        self.servers = []
        self.take_connections()
        self.started = True

    def take_connections(self) -> None:
        """Begin to take them, and say so."""
        if self._listener is not None:
            self._acceptor = Acceptor(self._listener, self.begin)
            self._acceptor.open()
            log_listening(self._parts.settings, self._listener)

    async def take_last_connections(self) -> None:
        """Take what has been connected by now, and no more."""
        if self._acceptor is not None:
            await self._acceptor.close(self._drained_at())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, after the last connections."""
        await self.take_last_connections()
        await asyncio.gather(*self.beginning, return_exceptions=True)
        await super().shutdown(sockets)

    def begin(self, connection: socket.socket) -> bool:
        """Serve on a connection, which is this server's from here."""
        task = asyncio.get_running_loop().create_task(self._begin(connection))
        self.beginning.add(task)
        task.add_done_callback(self.beginning.discard)
        return True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain."""
        # Not uvicorn's own, which would end the process by the signal: having drained is a success, status 0.
        del frame
        _log.log(self.told_at, "%s: answering what was accepted, then stopping", signal.Signals(sig).name)
        if self._parts.runtime is None:
            # Nothing has been accepted. An exception would be lost in the load that this has interrupted.
            exit_at_once(0)
        if not self.should_exit:
            self._parts.drained_at = self._drained_at()
            end_process_within(
                self._parts.settings.drain_timeout_s + FORCED_AFTER_DRAIN_S,
                "it had not ended by itself long after the time to drain",
            )
        # Before the socket closes: who comes now is told so.
        self._parts.runtime.drain()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def _drained_at(self) -> float:
        return self._parts.drained_at or perf_counter() + self._parts.settings.drain_timeout_s

    async def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn calls it itself
                    config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
                ),
                connection,
            )
        except OSError:
            # Its caller has gone already.
            connection.close()
