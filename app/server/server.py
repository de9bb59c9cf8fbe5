"""Run uvicorn with draining on SIGTERM, one-line start failures and its own acceptor."""

from __future__ import annotations

import asyncio
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
from app.api.middleware import PlainStartFailures
from app.main import create_app
from app.process.lifetime import (
    FORCED_AFTER_DRAIN_S,
    allow_many_connections,
    end_process,
    end_process_within,
    ended_by_signals,
    refuse_to_start,
    tune_interpreter,
)
from app.process.logs import exit_at_once
from app.server.connection import BoundedConnection
from app.server.listener import Acceptor, bind, log_listening, reserve_grpc_port
from app.settings import Settings
from models.interface.errors import StartError

_log = logging.getLogger(__name__)

# Seconds until an idle keep-alive connection is closed. Load balancers commonly close theirs after 60 s, and must be
# the first to close.
_KEEP_ALIVE_S = 75


def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then answer the accepted requests. Ends the process if it cannot start."""
    tune_interpreter()
    app = create_app(settings)
    parts: Parts = app.state.parts
    # Bind before the models are loaded, so that a wrong address is reported at once; accept connections afterwards.
    try:
        listener = bind(settings)
        # gRPC binds its port itself; here it is checked.
        if (grpc_port := reserve_grpc_port(settings)) is not None:
            grpc_port.close()
    except StartError as error:
        refuse_to_start(error)
    allow_many_connections()
    server = Server(server_config(app, parts), parts, listener)
    if handles_sighup():
        # uvicorn installs handlers for SIGTERM and SIGINT only.
        signal.signal(signal.SIGHUP, server.handle_exit)
    server.run()
    sys.exit(1)


def handles_sighup() -> bool:
    """Return False if the parent process ignores SIGHUP, as `nohup` does."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def server_config(app: FastAPI, parts: Parts) -> uvicorn.Config:
    """Return uvicorn's configuration, for one process and for HTTP workers alike."""
    settings = parts.settings
    return uvicorn.Config(
        PlainStartFailures(app, parts),
        # If a WebSocket library is installed, uvicorn would hand upgrade requests to it, without our limits.
        ws="none",
        http=BoundedConnection.with_bounds(
            settings.read_timeout_s, parts.metrics.refused_by_connection, app.state.shedding
        ),
        log_config=None,
        access_log=False,
        server_header=False,
        # X-Forwarded-For is not trusted.
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        # uvicorn takes whole seconds; rounded up, so that accepted requests have the whole drain timeout.
        timeout_graceful_shutdown=max(1, int(-(-settings.drain_timeout_s // 1))),
    )


class Server(uvicorn.Server):
    """A uvicorn server that drains on SIGTERM and accepts connections itself.

    uvicorn would reset connections that wait in the kernel's queue when it stops, and asyncio drops connections
    without a log line while the process has no file descriptors left.
    """

    # Level of the log line at the start of a drain.
    stop_log_level = logging.INFO

    def __init__(self, config: uvicorn.Config, parts: Parts, listener: socket.socket | None = None) -> None:
        super().__init__(config)
        self._parts = parts
        self._listener = listener
        self._acceptor: Acceptor | None = None
        # Tasks of accepted connections that have no protocol object yet.
        self.starting_connections: set[asyncio.Task[None]] = set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Run uvicorn's serve, then end the process, because the end of the event loop would join its threads."""
        await super().serve(sockets)
        if self.started:
            end_process(self._parts.failure)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - unused, always None
        """Start the application, then accept connections; replaces uvicorn's listening sockets."""
        with ended_by_signals(lambda: self._parts.runtime is not None):
            await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        self.servers = []
        self.start_accepting()
        self.started = True

    def start_accepting(self) -> None:
        """Start to accept connections, and log the address."""
        runtime = self._parts.runtime
        if self._listener is not None and runtime is not None:
            self._acceptor = Acceptor(self._listener, self.serve_connection)
            self._acceptor.open()
            log_listening(self._parts.settings, self._listener, runtime.cards.values())

    async def stop_accepting(self) -> None:
        """Accept the connections that have been made, then close the listener."""
        if self._acceptor is not None:
            await self._acceptor.close(self._drain_deadline())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Run uvicorn's shutdown after the last connections have been accepted."""
        await self.stop_accepting()
        await asyncio.gather(*self.starting_connections, return_exceptions=True)
        await super().shutdown(sockets)

    def serve_connection(self, connection: socket.socket) -> bool:
        """Serve requests on an accepted connection, which the server then owns."""
        task = asyncio.get_running_loop().create_task(self._create_protocol(connection))
        self.starting_connections.add(task)
        task.add_done_callback(self.starting_connections.discard)
        return True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain; a signal handler. uvicorn's own ends the process by the signal, but a drain is a success."""
        del frame
        _log.log(self.stop_log_level, "%s: answering what was accepted, then stopping", signal.Signals(sig).name)
        if self._parts.runtime is None:
            # No request has been accepted. The model load that this handler interrupts would swallow an exception.
            exit_at_once(0)
        if not self.should_exit:
            self._parts.drained_at = self._drain_deadline()
            end_process_within(
                self._parts.settings.drain_timeout_s + FORCED_AFTER_DRAIN_S,
                "it had not ended by itself long after the time to drain",
            )
        # Drain before the listener closes, so that new requests are answered with 503.
        self._parts.runtime.drain()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def _drain_deadline(self) -> float:
        return self._parts.drained_at or perf_counter() + self._parts.settings.drain_timeout_s

    async def _create_protocol(self, connection: socket.socket) -> None:
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
            # The client has disconnected already.
            connection.close()
