"""Callers' connections, from the process that accepts them to those that answer on them."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from time import perf_counter

_log = logging.getLogger(__name__)

_BACKLOG = 2048
# As many connections as are accepted before anything else has its turn.
_AT_ONCE = 64

# Where there are no more file descriptors, the next may be free after so long; where fronts are behind, a place.
_NO_FILES_S = 0.5
_FULL_S = 0.005

# An event loop that has not turned for so long, where it does ten times a second, is handed nothing if others turn.
_SLOW_S = 1.0

# More than a front has been handed and has not said that it has taken.
_MOST_TAKEN = 4096


@dataclass(slots=True)
class FrontProcess:
    """A front, as its parent knows it. `handing` is the socket that its connections go over; `told`, what it says of
    itself, as app/fronts/front_process.py has it."""

    process: ForkServerProcess
    handing: socket.socket
    told: ctypes.Array[ctypes.c_uint]
    # What it has been handed and has not taken: it is kept open here, for others if this one ends.
    not_taken: deque[socket.socket] = field(default_factory=deque)
    # It is ended because of that.
    hung: bool = False
    # How often it had told by when that was last looked at and had changed.
    turns: int = 0
    turned_at: float = field(default_factory=perf_counter)

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

    def hand(self, connection: socket.socket) -> bool:
        """Give it a connection. False where it is ending, or has not come to many: then it stays the caller's."""
        try:
            socket.send_fds(self.handing, [b"."], [connection.fileno()])
        except OSError:
            return False
        self.not_taken.append(connection)
        return True

    def let_go(self) -> bool:
        """Close here what it has taken by now. It says so at once, for until then a caller does not hear of it when the
        front closes his connection. False if it will say no more."""
        try:
            taken = len(self.handing.recv(_MOST_TAKEN))
        except BlockingIOError:
            return True
        except OSError:
            return False
        for _ in range(taken):
            self.not_taken.popleft().close()
        return taken > 0


class Doorkeeper:
    """Accepts connections on an event loop, and hands each to that of `fronts` which has the fewest."""

    def __init__(self, listener: socket.socket, fronts: Callable[[], Iterable[FrontProcess]]) -> None:
        self._listener = listener
        self._fronts = fronts
        # Accepted, and not handed over yet.
        self._held: deque[socket.socket] = deque()
        self._open = False

    def open(self) -> None:
        """Listen."""
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._open = True
        self._go_on()

    async def close(self, until: float) -> None:
        """Hand over those that wait to be accepted, until that moment (`perf_counter`) at the latest and for as long as
        there are fronts, and listen no more."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._listener)
            while self._accept() and list(self._fronts()) and perf_counter() < until:  # noqa: ASYNC110 - the kernel's
                await asyncio.sleep(_FULL_S)
        self._listener.close()
        for connection in self._held:
            connection.close()

    def take_back(self, connections: Sequence[socket.socket]) -> None:
        """Hand to others what a front that has ended had not taken; close it, when nobody listens any more."""
        if self._open:
            self._held.extendleft(reversed(connections))
            self._accept()
        else:
            for connection in connections:
                connection.close()

    def _go_on(self) -> None:
        if self._open:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)
            if self._held:
                self._accept()

    def _accept(self) -> bool:
        """Hand over those that wait, or some of many. False where there is none left, or none can be had."""
        for _ in range(_AT_ONCE):
            if not self._held:
                try:
                    connection, _ = self._listener.accept()
                    self._held.append(connection)
                except BlockingIOError:
                    return False
                except OSError as error:
                    _log.warning("no connection can be accepted: %s", error.strerror)
                    self._pause(_NO_FILES_S)
                    return False
            by_load = sorted(
                self._fronts(), key=lambda front: (front.silent_seconds() > _SLOW_S, front.open_connections)
            )
            if not any(front.hand(self._held[0]) for front in by_load):
                # Whoever comes meanwhile waits in the kernel.
                self._pause(_FULL_S)
                return True
            self._held.popleft()
        if self._held:
            # Of many that came back: nobody may come who would have them looked at again.
            self._pause(0)
        return True

    def _pause(self, seconds: float) -> None:
        if self._open:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            loop.call_later(seconds, self._go_on)
