"""An HTTP worker: the application, for connections that the engine process sends, with a runtime whose forwards run in
the engine process."""

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
from app.process.lifetime import end_process_within, tune_interpreter
from app.process.logs import configure_logging, exit_at_once
from app.server.server import Server, server_config
from app.settings import Settings
from models.interface.runtime import Runtime
from models.interface.telemetry import Telemetry

if TYPE_CHECKING:
    from models.workers.worker_runtime import EngineConnection, WorkerOptions

_log = logging.getLogger(__name__)

# Replies of a worker to each connection that it is sent: it has taken it, or has no file descriptor for it.
TAKEN, NO_FILES = b".", b"!"

# Linux sends no more with one message (SCM_MAX_FD).
_MAX_CONNECTIONS = 253

# Prometheus gives up a scrape after ten seconds by default.
_SCRAPE_TIMEOUT_S = 8.0

# After the engine process has ended, requests fail at once. The worker does not wait for bodies that are half sent.
_GIVEN_UP_END_S = 1.0


class WorkerStatus(ctypes.Structure):
    """What a worker reports in memory that the engine process reads."""

    # `ticks` counts the reports; it is 0 until the worker serves.
    _fields_ = (("open_connections", ctypes.c_uint), ("ticks", ctypes.c_uint))

    open_connections: int
    ticks: int


def create_status() -> tuple[int, WorkerStatus]:
    """Return a file descriptor of memory for a worker's status, and the status in it."""
    descriptor = os.memfd_create("worker-status")
    os.ftruncate(descriptor, ctypes.sizeof(WorkerStatus))
    return descriptor, _map_status(descriptor)


def _map_status(descriptor: int) -> WorkerStatus:
    return WorkerStatus.from_buffer(mmap.mmap(descriptor, ctypes.sizeof(WorkerStatus)))


def run_worker(settings: Settings, options: WorkerOptions, number: int, descriptors: Sequence[int]) -> None:
    """Serve until SIGTERM. `settings` and `options` are this worker's share of the service's.

    `descriptors` are its ends of two sockets, for messages and for connections, then its status and the memory of its
    counts."""
    # Until there is something to drain.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: exit_at_once(0))
    configure_logging(settings.log_level, settings.log_format)
    try:
        _serve(settings, options, number, descriptors)
    except Exception:  # noqa: BLE001 - the last place that can log it
        _log.exception("an HTTP worker failed")
    finally:
        # A worker that has served ends its process itself.
        exit_at_once(1)


def _serve(settings: Settings, options: WorkerOptions, number: int, descriptors: Sequence[int]) -> None:
    # Not at the top: the HTTP side is imported and tested without torch.
    from models.workers.worker_runtime import EngineConnection  # noqa: PLC0415

    # The engine process logs the service's start and end.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    tune_interpreter()
    # Before anything is counted.
    count_in(descriptors[3])
    messages, connections = (socket.socket(fileno=descriptor) for descriptor in descriptors[:2])
    status = _map_status(descriptors[2])
    # Mapped now. Descriptors of `options` follow, and stay open.
    for descriptor in descriptors[2:4]:
        os.close(descriptor)
    engine = EngineConnection(number, messages)
    app = create_app(settings, lambda telemetry: start_runtime(options, engine, parts, telemetry))
    parts: Parts = app.state.parts
    parts.scraped.build = partial(_service_metrics, parts)
    server = _WorkerServer(server_config(app, parts), parts, connections, status)
    server.run()
    sys.exit(1)


def start_runtime(options: WorkerOptions, engine: EngineConnection, parts: Parts, telemetry: Telemetry) -> Runtime:
    """Return the worker's runtime, once it is known what is served."""
    # Not at the top: the HTTP side is imported and tested without torch.
    from models.workers.worker_runtime import WorkerRuntime  # noqa: PLC0415

    def give_up(reason: str) -> None:
        parts.failure = reason
        end_process_within(_GIVEN_UP_END_S, reason)
        os.kill(os.getpid(), signal.SIGTERM)

    return WorkerRuntime(engine, options, telemetry, give_up)


def _service_metrics(parts: Parts, accept: str) -> tuple[bytes, str]:
    """Return the metrics of the whole service, which the engine process has. Blocks, so not for the event loop."""
    from models.workers.worker_runtime import WorkerRuntime  # noqa: PLC0415 - as above

    if not isinstance(parts.runtime, WorkerRuntime):
        return parts.metrics.exposition(accept)
    max_age_s = parts.settings.metrics_max_age_s
    return parts.runtime.exposition(accept, max_age_s, _SCRAPE_TIMEOUT_S).encode(), content_type_for(accept)


class _WorkerServer(Server):
    """A server that does not listen: the engine process sends it connections, and logs the service's stop."""

    stop_log_level = logging.DEBUG

    def __init__(self, config: uvicorn.Config, parts: Parts, connections: socket.socket, status: WorkerStatus) -> None:
        super().__init__(config, parts)
        self._connections = connections
        self._status = status
        # Replies to connections, in their order, that are not sent yet.
        self._unsent = b""

    def start_accepting(self) -> None:
        self._connections.setblocking(False)
        asyncio.get_running_loop().add_reader(self._connections, self._take)

    async def stop_accepting(self) -> None:
        # Only this worker may be ending: from here on others get new connections.
        self._connections.shutdown(socket.SHUT_RD)
        # Those sent by now were accepted.
        self._take()
        asyncio.get_running_loop().remove_reader(self._connections)
        self._connections.close()

    async def on_tick(self, counter: int) -> bool:
        self._status.ticks += 1
        self._report()
        # The engine process has the metrics, and this process the log lines.
        self._parts.metrics.count_dropped_lines()
        return await super().on_tick(counter)

    def _take(self) -> None:
        received = b"more"
        while received:
            try:
                received, descriptors, _, _ = socket.recv_fds(self._connections, _MAX_CONNECTIONS, _MAX_CONNECTIONS)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # The engine process has ended without reading all replies.
                received, descriptors = b"", []
            for descriptor in descriptors:
                self.serve_connection(socket.socket(fileno=descriptor))
            # The kernel drops descriptors that would exceed the limit of open files.
            self._unsent += TAKEN * len(descriptors) + NO_FILES * (len(received) - len(descriptors))
        if not received:
            # No more will come. If the engine process has ended, its other socket reports that.
            asyncio.get_running_loop().remove_reader(self._connections)
        # Before anything is read from them: other workers get those that have no reply when this worker ends.
        self._report()

    def _report(self) -> None:
        self._status.open_connections = len(self.server_state.connections) + len(self.starting_connections)
        # The socket may be full, then the rest is sent at the next tick, or closed.
        with contextlib.suppress(OSError):
            self._unsent = self._unsent[self._connections.send(self._unsent) :]
