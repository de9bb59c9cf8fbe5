"""What a front runs: the application, for connections that it is handed, with its forwards in another process."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import uvicorn

from app.dependencies import Parts
from app.fronts.exposition import added
from app.logs import configure_logging, exit_at_once
from app.main import create_app
from app.metrics import content_type_for
from app.runtime import Runtime
from app.server import Server, end_without_success, server_config, tune_interpreter
from app.settings import Settings
from models.telemetry import Telemetry

if TYPE_CHECKING:
    from models.fronts.front import FrontOptions, Place

_log = logging.getLogger(__name__)

# As many as come with one message of Linux's.
_MOST_CONNECTIONS = 253

# A scrape without an answer is over in ten, where Prometheus is left as it is.
_SCRAPE_TIMEOUT_S = 8.0


@dataclass(frozen=True, slots=True)
class Connections:
    """The socket over which a front is handed its connections, and says with as many bytes how many it has taken, and
    where it says how many it has open, and how often it has said so since it serves: two unsigned numbers in shared
    memory."""

    handed: socket.socket
    told: ctypes.Array[ctypes.c_uint]


def run_front(settings: Settings, options: FrontOptions, place: Place, connections: Connections) -> None:
    """Serve until SIGTERM. `settings` and `options` are this front's share of the service's."""
    # The engine process has it as well, and tells when to end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Until there is something to drain.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: exit_at_once(0))
    configure_logging(settings.log_level, settings.log_format)
    try:
        _serve(settings, options, place, connections)
    except Exception:  # noqa: BLE001 - told here, as multiprocessing would tell it after the log has been closed
        _log.exception("a front failed")
        raise SystemExit(1) from None
    finally:
        # A process that multiprocessing has started ends without Python's own exit handlers.
        logging.shutdown()


def _serve(settings: Settings, options: FrontOptions, place: Place, connections: Connections) -> None:
    # The engine process tells when the service begins and ends.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    tune_interpreter()
    app = create_app(settings, lambda telemetry: start_front(options, place, parts, telemetry))
    parts: Parts = app.state.parts
    parts.scraped.build = partial(_everybodys_metrics, parts)
    server = _FrontServer(server_config(app, parts), parts, connections)
    server.run()
    if not server.started:
        sys.exit(1)
    end_without_success(parts.failure)


def start_front(options: FrontOptions, place: Place, parts: Parts, telemetry: Telemetry) -> Runtime:
    """Wait until it is known what is served."""
    # Here, not above: the HTTP side is imported and tested without torch.
    from models.fronts.front import Front  # noqa: PLC0415

    def give_up(reason: str) -> None:
        parts.failure = reason
        os.kill(os.getpid(), signal.SIGTERM)

    return Front(place, options, telemetry, lambda accept: parts.metrics.exposition(accept)[0].decode(), give_up)


def _everybodys_metrics(parts: Parts, accept: str) -> tuple[bytes, str]:
    """Of the whole service, whichever front was asked. Blocks, and is not for the event loop."""
    from models.fronts.front import Front  # noqa: PLC0415 - as above

    if not isinstance(parts.runtime, Front):
        return parts.metrics.exposition(accept)
    engine, *fronts = parts.runtime.expositions(accept, parts.settings.metrics_max_age_s, _SCRAPE_TIMEOUT_S)
    return added(engine, fronts).encode(), content_type_for(accept)


class _FrontServer(Server):
    """Listens nowhere: it is handed connections. The engine process tells that the service stops."""

    told_at = logging.DEBUG

    def __init__(self, config: uvicorn.Config, parts: Parts, connections: Connections) -> None:
        super().__init__(config, parts)
        self._connections = connections
        # Taken, and not said yet.
        self._untold = 0
        self._beginning: set[asyncio.Task[object]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - there are none
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(1)
        self.servers = []
        self._connections.handed.setblocking(False)
        asyncio.get_running_loop().add_reader(self._connections.handed, self._take)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        handed = self._connections.handed
        # Of this front alone it may be the end: from here on others are handed what comes.
        handed.shutdown(socket.SHUT_RD)
        # What has been handed over by now was accepted.
        self._take()
        asyncio.get_running_loop().remove_reader(handed)
        handed.close()
        await asyncio.gather(*self._beginning, return_exceptions=True)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        self._connections.told[1] += 1
        self._tell()
        return await super().on_tick(counter)

    def _take(self) -> None:
        loop = asyncio.get_running_loop()
        handed = self._connections.handed
        told = b"more"
        while told:
            try:
                told, descriptors, _, _ = socket.recv_fds(handed, _MOST_CONNECTIONS, _MOST_CONNECTIONS)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # The engine process has ended, and had not heard all.
                told, descriptors = b"", []
            # A connection for which this process may open no file is closed by the kernel.
            self._untold += len(told)
            for descriptor in descriptors:
                task = loop.create_task(self._begin(loop, socket.socket(fileno=descriptor)))
                self._beginning.add(task)
                task.add_done_callback(self._beginning.discard)
        if not told:
            # No more will come. If it is for the engine process's end, its other sockets tell of that as well.
            loop.remove_reader(handed)
        # Before anything is read from them: what is not taken by its end, another is handed.
        self._tell()

    async def _begin(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        connection.setblocking(False)
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

    def _tell(self) -> None:
        self._connections.told[0] = len(self.server_state.connections) + len(self._beginning)
        # It may have no room for more words, and is told later, or have ended.
        with contextlib.suppress(OSError):
            self._untold -= self._connections.handed.send(b"." * self._untold)
