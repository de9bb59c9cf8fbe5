"""An HTTP worker: the application, for connections that the engine process accepts and sends, with a runtime whose
forwards run in the engine process. Here are both sides of passing connections.

Why not SO_REUSEPORT: the kernel spreads connections by a hash, not by load, and those queued for a worker that ends
are reset."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import mmap
import os
import signal
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import uvicorn

from app.api.dependencies import Parts
from app.main import create_app, serving_options
from app.observability.metrics import CountsReader, content_type_for, count_in
from app.process.lifetime import end_process_within, tune_interpreter
from app.process.logs import configure_logging, exit_at_once
from app.server.listener import NO_FILES_S
from app.server.server import Server, server_config
from app.settings import Settings
from app.workers.fork_server import Fork
from models.interface.runtime import Runtime
from models.interface.telemetry import Telemetry

_log = logging.getLogger(__name__)

# Replies of a worker to each connection that it is sent: it has taken it, or has no file descriptor for it.
TAKEN, NO_FILES = b".", b"!"

# A worker whose event loop has not run for so long gets connections only if the others have not either. It runs at
# least ten times a second.
_SLOW_S = 1.0

# More replies than connections that a worker can have been sent without having replied.
_MAX_REPLIES = 4096

# Linux sends no more with one message (SCM_MAX_FD).
_MAX_CONNECTIONS = 253

# Prometheus gives up a scrape after ten seconds by default.
_SCRAPE_TIMEOUT_S = 8.0

# After the engine process has ended, requests fail at once. The worker does not wait for bodies that are half sent.
_GIVEN_UP_END_S = 1.0


class WorkerStatus(ctypes.Structure):
    """What a worker reports in memory that the engine process reads. `ticks` counts the reports; it is 0 until the
    worker serves. `received` counts the connections sent to it that `open_connections` knows of."""

    _fields_ = (("open_connections", ctypes.c_uint64), ("received", ctypes.c_uint64), ("ticks", ctypes.c_uint64))

    open_connections: int
    received: int
    ticks: int


def create_status() -> tuple[int, WorkerStatus]:
    """Return a file descriptor of memory for a worker's status, and the status in it."""
    descriptor = os.memfd_create("worker-status")
    os.ftruncate(descriptor, ctypes.sizeof(WorkerStatus))
    return descriptor, _map_status(descriptor)


def _map_status(descriptor: int) -> WorkerStatus:
    return WorkerStatus.from_buffer(mmap.mmap(descriptor, ctypes.sizeof(WorkerStatus)))


@dataclass(slots=True, eq=False)
class HttpWorker:
    """An HTTP worker, as the engine process knows it. `dispatch_socket` sends it connections; `status` and `counts`
    are memory that the worker writes."""

    process: Fork
    dispatch_socket: socket.socket
    status: WorkerStatus
    counts: CountsReader
    # Connections sent to it that it has not replied to. They stay open here: if it ends, others get them.
    unacknowledged: deque[socket.socket] = field(default_factory=deque)
    # It is killed because it is unresponsive.
    unresponsive: bool = False
    # Connections sent to it.
    sent: int = 0
    # The last `status.ticks` seen, and when that changed.
    ticks: int = 0
    ticked_at: float = field(default_factory=perf_counter)
    # It has no file descriptors until then.
    full_until: float = 0.0

    @property
    def serving(self) -> bool:
        return self.status.ticks > 0

    @property
    def open_connections(self) -> int:
        """Connections that it has, and those on their way to it."""
        # Not those without a reply: the worker counts some of them already.
        return self.status.open_connections + self.sent - self.status.received

    def silent_seconds(self) -> float:
        """Return how long its event loop has not run, as far as calls of this method show."""
        if self.ticks != self.status.ticks:
            self.ticks, self.ticked_at = self.status.ticks, perf_counter()
        return perf_counter() - self.ticked_at

    def kill_unresponsive(self) -> None:
        self.unresponsive = True
        self.process.send_signal(signal.SIGKILL)

    def dispatch(self, connection: socket.socket) -> bool:
        """Send it a connection. Return False if it is ending, has no file descriptors, or has read none of many; then
        the connection stays the caller's."""
        if perf_counter() < self.full_until:
            return False
        try:
            socket.send_fds(self.dispatch_socket, [b"."], [connection.fileno()])
        except OSError:
            return False
        self.unacknowledged.append(connection)
        self.sent += 1
        return True

    def read_replies(self) -> list[socket.socket] | None:
        """Close the connections that it has taken. It replies at once: until they are closed here, a client does not
        notice when the worker closes its connection. Return those that it has no file descriptors for; None if it will
        reply no more."""
        try:
            replies = self.dispatch_socket.recv(_MAX_REPLIES)
        except BlockingIOError:
            return []
        except OSError:
            replies = b""
        refused = []
        for reply in replies:
            connection = self.unacknowledged.popleft()
            if reply == NO_FILES[0]:
                refused.append(connection)
            else:
                connection.close()
        if refused:
            self.full_until = perf_counter() + NO_FILES_S
        return refused if replies else None


def dispatch(connection: socket.socket, workers: Iterable[HttpWorker]) -> bool:
    """Send a connection to the worker with the fewest of those that serve. Return False if none accepts it; then it
    stays the caller's."""
    serving = (worker for worker in workers if worker.serving)
    by_load = sorted(serving, key=lambda worker: (worker.silent_seconds() > _SLOW_S, worker.open_connections))
    return any(worker.dispatch(connection) for worker in by_load)


def run_worker(settings: Settings, number: int, descriptors: Sequence[int]) -> None:
    """Serve until SIGTERM, with this worker's share of what the settings give to the service.

    `descriptors` are its ends of two sockets, for messages and for connections, then its status, the memory of its
    counts, and the decode memory of the service."""
    # Until there is something to drain.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: exit_at_once(0))
    configure_logging(settings.log_level, settings.log_format)
    try:
        _serve(settings, number, descriptors)
    except Exception:  # noqa: BLE001 - the last place that can log it
        _log.exception("an HTTP worker failed")
    finally:
        # A worker that has served ends its process itself.
        exit_at_once(1)


def _serve(settings: Settings, number: int, descriptors: Sequence[int]) -> None:
    # Not at the top: the HTTP side is imported and tested without torch.
    from models.images.decode_memory import DecodeMemory  # noqa: PLC0415
    from models.images.decode_pool import DecodePool  # noqa: PLC0415
    from models.workers.worker_runtime import WorkerRuntime  # noqa: PLC0415

    # The engine process logs the service's start and end.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    tune_interpreter()
    messages, connections, status, counts, decode_memory = descriptors
    # Before anything is counted.
    count_in(counts)

    def start(telemetry: Telemetry) -> Runtime:
        options = serving_options(settings)
        decode_pool = DecodePool(
            options.decode_threads or 1,
            options.limits,
            longest_wait_s=options.longest_decode_wait_s(settings.http_workers or 1),
            memory=DecodeMemory(options.limits.max_decode_bytes, decode_memory),
        )
        runtime = WorkerRuntime(number, socket.socket(fileno=messages), options, decode_pool, telemetry, give_up)

        # The metrics of the whole service, which the engine process has.
        def exposition(accept: str, max_age_s: float = settings.metrics_max_age_s) -> tuple[bytes, str]:
            return runtime.exposition(accept, max_age_s, _SCRAPE_TIMEOUT_S).encode(), content_type_for(accept)

        parts.scraped.build = exposition
        parts.scraped.build_anew = partial(exposition, max_age_s=0)
        return runtime

    def give_up(reason: str) -> None:
        parts.failure = reason
        end_process_within(_GIVEN_UP_END_S, reason)
        os.kill(os.getpid(), signal.SIGTERM)

    app = create_app(settings, start)
    parts: Parts = app.state.parts
    server = _WorkerServer(server_config(app, parts), parts, socket.socket(fileno=connections), _map_status(status))
    for mapped in (status, counts):
        os.close(mapped)
    server.run()


class _WorkerServer(Server):
    """A server that does not listen: the engine process sends it connections, and logs the service's stop."""

    stop_log_level = logging.DEBUG

    def __init__(self, config: uvicorn.Config, parts: Parts, connections: socket.socket, status: WorkerStatus) -> None:
        super().__init__(config, parts)
        self._connections = connections
        self._status = status
        self._received = 0
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
            self._received += len(received)
            # The kernel drops descriptors that would exceed the limit of open files.
            self._unsent += TAKEN * len(descriptors) + NO_FILES * (len(received) - len(descriptors))
        if not received:
            # No more will come. If the engine process has ended, its other socket reports that.
            asyncio.get_running_loop().remove_reader(self._connections)
        # Before anything is read from them: other workers get those that have no reply when this worker ends.
        self._report()

    def _report(self) -> None:
        self._status.open_connections = len(self.server_state.connections) + len(self.starting_connections)
        self._status.received = self._received
        # The socket may be full, then the rest is sent at the next tick, or closed.
        with contextlib.suppress(OSError):
            self._unsent = self._unsent[self._connections.send(self._unsent) :]
