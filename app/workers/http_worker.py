"""What a worker runs: the application, for connections that it is handed, with its forwards in another process."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import mmap
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import uvicorn

from app.api.dependencies import Parts
from app.main import create_app
from app.observability.metrics import content_type_for, count_in
from app.process.interpreter import tune_interpreter
from app.process.logs import configure_logging, exit_at_once
from app.process.stopping import end_process_within
from app.server.server import Server, server_config
from app.settings import Settings
from models.interface.runtime import Runtime
from models.interface.telemetry import Telemetry

if TYPE_CHECKING:
    from models.workers.worker_runtime import Place, WorkerOptions

_log = logging.getLogger(__name__)

# What a worker says of each connection that it is handed: that it has taken it, or has no file descriptor for it.
TAKEN, NO_FILES = b".", b"!"

# As many as come with one message of Linux's.
_MOST_CONNECTIONS = 253

# A scrape without an answer is over in ten, where Prometheus is left as it is.
_SCRAPE_TIMEOUT_S = 8.0

# Without the engine process requests are failed at once. Bodies that are half sent are not waited for.
_GIVEN_UP_END_S = 1.0


# What it says of itself, two unsigned numbers in shared memory: how many connections it has open, and how often it has
# said so since it serves.
Told = ctypes.c_uint * 2


def shared_told() -> tuple[int, ctypes.Array[ctypes.c_uint]]:
    """Memory for what a worker says of itself, and its file descriptor, by which the worker maps it."""
    descriptor = os.memfd_create("worker")
    os.ftruncate(descriptor, ctypes.sizeof(Told))
    return descriptor, _map_told(descriptor)


def _map_told(descriptor: int) -> ctypes.Array[ctypes.c_uint]:
    return Told.from_buffer(mmap.mmap(descriptor, ctypes.sizeof(Told)))


def run_worker(settings: Settings, options: WorkerOptions, number: int, descriptors: Sequence[int]) -> None:
    """Serve until SIGTERM. `settings` and `options` are this worker's share of the service's. `descriptors`: its ends
    of three sockets, for images, for messages and for the connections that it is handed, memory as of `shared_told`,
    and that for what it counts."""
    # Until there is something to drain.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: exit_at_once(0))
    configure_logging(settings.log_level, settings.log_format)
    try:
        _serve(settings, options, number, descriptors)
    except Exception:  # noqa: BLE001 - told here: nobody else has the log
        _log.exception("a worker failed")
    finally:
        # One that has served has ended by itself.
        exit_at_once(1)


def _serve(settings: Settings, options: WorkerOptions, number: int, descriptors: Sequence[int]) -> None:
    # Here, not above: the HTTP side is imported and tested without torch.
    from models.workers.worker_runtime import Place  # noqa: PLC0415

    # The engine process tells when the service begins and ends.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    tune_interpreter()
    # Before there is anything that counts.
    count_in(descriptors[4])
    images, channel, handed = (socket.socket(fileno=descriptor) for descriptor in descriptors[:3])
    told = _map_told(descriptors[3])
    for descriptor in descriptors[3:]:
        os.close(descriptor)
    place = Place(number, images, channel)
    app = create_app(settings, lambda telemetry: start_worker(options, place, parts, telemetry))
    parts: Parts = app.state.parts
    parts.scraped.build = partial(_everybodys_metrics, parts)
    server = _FrontServer(server_config(app, parts), parts, handed, told)
    server.run()
    sys.exit(1)


def start_worker(options: WorkerOptions, place: Place, parts: Parts, telemetry: Telemetry) -> Runtime:
    """Wait until it is known what is served."""
    # Here, not above: the HTTP side is imported and tested without torch.
    from models.workers.worker_runtime import WorkerRuntime  # noqa: PLC0415

    def give_up(reason: str) -> None:
        parts.failure = reason
        end_process_within(_GIVEN_UP_END_S, reason)
        os.kill(os.getpid(), signal.SIGTERM)

    return WorkerRuntime(place, options, telemetry, give_up)


def _everybodys_metrics(parts: Parts, accept: str) -> tuple[bytes, str]:
    """Of the whole service, whichever worker was asked: the engine process has them. Blocks, and is not for the event
    loop."""
    from models.workers.worker_runtime import WorkerRuntime  # noqa: PLC0415 - as above

    if not isinstance(parts.runtime, WorkerRuntime):
        return parts.metrics.exposition(accept)
    max_age_s = parts.settings.metrics_max_age_s
    return parts.runtime.exposition(accept, max_age_s, _SCRAPE_TIMEOUT_S).encode(), content_type_for(accept)


class _FrontServer(Server):
    """Listens nowhere: it is handed connections. The engine process tells that the service stops."""

    stop_log_level = logging.DEBUG

    def __init__(
        self, config: uvicorn.Config, parts: Parts, handed: socket.socket, told: ctypes.Array[ctypes.c_uint]
    ) -> None:
        super().__init__(config, parts)
        self._handed = handed
        self._told = told
        # Of connections that it was handed, in their order: not said yet.
        self._untold = b""

    def start_accepting(self) -> None:
        self._handed.setblocking(False)
        asyncio.get_running_loop().add_reader(self._handed, self._take)

    async def stop_accepting(self) -> None:
        # Of this worker alone it may be the end: from here on others are handed what comes.
        self._handed.shutdown(socket.SHUT_RD)
        # What has been handed over by now was accepted.
        self._take()
        asyncio.get_running_loop().remove_reader(self._handed)
        self._handed.close()

    async def on_tick(self, counter: int) -> bool:
        self._told[1] += 1
        self._tell()
        # The engine process has its metrics, and this process's log.
        self._parts.metrics.count_dropped_lines()
        return await super().on_tick(counter)

    def _take(self) -> None:
        told = b"more"
        while told:
            try:
                told, descriptors, _, _ = socket.recv_fds(self._handed, _MOST_CONNECTIONS, _MOST_CONNECTIONS)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # The engine process has ended, and had not heard all.
                told, descriptors = b"", []
            for descriptor in descriptors:
                self.serve_connection(socket.socket(fileno=descriptor))
            # The kernel leaves out those for which this process may open no file.
            self._untold += TAKEN * len(descriptors) + NO_FILES * (len(told) - len(descriptors))
        if not told:
            # No more will come. If it is for the engine process's end, its other sockets tell of that as well.
            asyncio.get_running_loop().remove_reader(self._handed)
        # Before anything is read from them: what is not taken by its end, another is handed.
        self._tell()

    def _tell(self) -> None:
        self._told[0] = len(self.server_state.connections) + len(self.starting_connections)
        # It may have no room for more words, and is told later, or have ended.
        with contextlib.suppress(OSError):
            self._untold = self._untold[self._handed.send(self._untold) :]
