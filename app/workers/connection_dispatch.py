"""Pass connections from the engine process, which accepts them, to the HTTP workers.

Why not SO_REUSEPORT: the kernel spreads connections by a hash, not by load, and those queued for a worker that ends
are reset."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import perf_counter

from app.observability.metrics import CountsReader
from app.server.listener import NO_FILES_S
from app.workers.fork_server import Fork
from app.workers.http_worker import NO_FILES, WorkerStatus

# A worker whose event loop has not run for so long gets connections only if the others have not either. It runs at
# least ten times a second.
_SLOW_S = 1.0

# More replies than connections that a worker can have been sent without having replied.
_MAX_REPLIES = 4096


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
    # The last `status.ticks` seen, and when that changed.
    ticks: int = 0
    ticked_at: float = field(default_factory=perf_counter)
    # It has no file descriptors until then.
    full_until: float = 0.0

    @property
    def open_connections(self) -> int:
        """Connections that it has, and those on their way to it."""
        return self.status.open_connections + len(self.unacknowledged)

    @property
    def serving(self) -> bool:
        """Whether it has started to serve."""
        return bool(self.status.ticks)

    def silent_seconds(self) -> float:
        """Return how long its event loop has not run, as far as calls of this method show."""
        if self.ticks != self.status.ticks:
            self.ticks, self.ticked_at = self.status.ticks, perf_counter()
        return perf_counter() - self.ticked_at

    def reset_silence(self) -> None:
        """Measure its silence from now on."""
        self.ticked_at = perf_counter()

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
    """Send a connection to the worker with the fewest. Return False if none accepts it; then it stays the caller's."""
    by_load = sorted(workers, key=lambda worker: (worker.silent_seconds() > _SLOW_S, worker.open_connections))
    return any(worker.dispatch(connection) for worker in by_load)
