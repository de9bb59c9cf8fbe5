"""Callers' connections, from the process that accepts them to those that answer on them."""

from __future__ import annotations

import ctypes
import socket
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import perf_counter

from app.observability.metrics import CountsReader
from app.server.acceptor import NO_FILES_S
from app.workers.fork_server import Fork
from app.workers.http_worker import NO_FILES

# An event loop that has not turned for so long, where it does ten times a second, is handed nothing if others turn.
_SLOW_S = 1.0

# More than a worker has been handed and has not said that it has taken.
_MOST_TAKEN = 4096


@dataclass(slots=True, eq=False)
class HttpWorker:
    """A worker, as its parent knows it. `handing` is the socket that its connections go over; `told`, what it says of
    itself, as app/workers/http_worker.py has it; `counts`, what it counts."""

    process: Fork
    handing: socket.socket
    told: ctypes.Array[ctypes.c_uint]
    counts: CountsReader
    # What it has been handed and has not taken: it is kept open here, for others if this one ends.
    not_taken: deque[socket.socket] = field(default_factory=deque)
    # It is ended because of that.
    hung: bool = False
    # How often it had told by when that was last looked at and had changed.
    turns: int = 0
    turned_at: float = field(default_factory=perf_counter)
    # It has no file descriptors until then, as far as is known.
    full_until: float = 0.0

    @property
    def open_connections(self) -> int:
        """Those that it has said it has, and those that it has not yet come to."""
        return self.told[0] + len(self.not_taken)

    @property
    def at_work(self) -> bool:
        """Whether it has begun to serve."""
        return bool(self.told[1])

    def silent_seconds(self) -> float:
        """For how long its event loop has not turned, or not begun to, as far as this has been asked."""
        if self.turns != self.told[1]:
            self.turns, self.turned_at = self.told[1], perf_counter()
        return perf_counter() - self.turned_at

    def give_time(self) -> None:
        """Count its silence from now on: nobody could have looked at it before."""
        self.turned_at = perf_counter()

    def hand(self, connection: socket.socket) -> bool:
        """Give it a connection. False where it is ending, or has no file descriptors, or has not come to many: then it
        stays the caller's."""
        if perf_counter() < self.full_until:
            return False
        try:
            socket.send_fds(self.handing, [b"."], [connection.fileno()])
        except OSError:
            return False
        self.not_taken.append(connection)
        return True

    def let_go(self) -> list[socket.socket] | None:
        """Close here what it has taken by now. It says so at once, for until then a caller does not hear of it when the
        worker closes his connection. Returns those that it has no file descriptors for; None if it will say no more."""
        try:
            said = self.handing.recv(_MOST_TAKEN)
        except BlockingIOError:
            return []
        except OSError:
            said = b""
        refused = []
        for word in said:
            connection = self.not_taken.popleft()
            if word == NO_FILES[0]:
                refused.append(connection)
            else:
                connection.close()
        if refused:
            self.full_until = perf_counter() + NO_FILES_S
        return refused if said else None


def hand(connection: socket.socket, workers: Iterable[HttpWorker]) -> bool:
    """Give a connection to that of `workers` which has the fewest. False where none takes it: it stays the caller's."""
    by_load = sorted(workers, key=lambda worker: (worker.silent_seconds() > _SLOW_S, worker.open_connections))
    return any(worker.hand(connection) for worker in by_load)
