"""Accept connections: from the kernel's queue, on an event loop, to whoever serves them."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import select
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter

_log = logging.getLogger(__name__)

_BACKLOG = 2048
# As many connections as are accepted before anything else runs.
_AT_ONCE = 64

# Without file descriptors the next may be free after so long; where `take` has no room, it may have some.
NO_FILES_S = 0.5
_FULL_S = 0.005

# As long as there are no file descriptors, it is logged so often.
_LOG_EVERY_S = 60.0

_NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# Handshakes that are under way when the listener is to close have so long to complete: a slow round trip.
_HANDSHAKES_S = 0.3

# Linux: drop each segment with the SYN flag, keep all others. In classic BPF (linux/filter.h) on a TCP socket the
# packet begins with the TCP header, whose byte 13 holds the flags.
_SO_ATTACH_FILTER = 26
_NO_NEW_HANDSHAKES = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


class Acceptor:
    """Gives each connection of `listener`, which is its own from here, to `take`. `take` returns False to refuse it for
    now: then the connection, and those behind it, wait. `out_of_files` logs that there are no file descriptors."""

    def __init__(self, listener: socket.socket, take: Callable[[socket.socket], bool]) -> None:
        self._listener = listener
        self._take = take
        # Accepted, and not taken yet.
        self._held: deque[socket.socket] = deque()
        self._open = False
        self.out_of_files = Rarely()

    def open(self) -> None:
        """Listen."""
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._open = True
        self._go_on()

    async def close(self, until: float, go_on: Callable[[], bool] = lambda: True) -> None:
        """Stop listening, and reset no connection that has been made: the kernel begins no more of them, and those in
        its queue are accepted first. `until` (`perf_counter`) is the latest moment; `go_on` False gives up earlier."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._listener)
            begin_no_more_connections(self._listener)
            handshakes_end = perf_counter() + _HANDSHAKES_S
            while go_on() and perf_counter() < until:
                if not (self._held or self._queued() or perf_counter() < handshakes_end):
                    break
                self._accept()
                await asyncio.sleep(_FULL_S)
        self._listener.close()
        for connection in self._held:
            connection.close()
        self._held.clear()

    def take_back(self, connections: Sequence[socket.socket]) -> None:
        """Give those that were taken to `take` again, before all others; close them when nobody listens any more."""
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

    def _queued(self) -> bool:
        """Whether a connection waits in the kernel."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        return bool(poll.poll(0))

    def _accept(self) -> None:
        """Take those that wait, or some of many."""
        for _ in range(_AT_ONCE):
            if not self._held:
                try:
                    connection, _ = self._listener.accept()
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno in _NO_RESOURCES:
                        self.out_of_files.log(
                            "no connection can be accepted: %s; new ones wait. Raise the limit (ulimit -n)",
                            error.strerror,
                        )
                        self._pause(NO_FILES_S)
                        return
                    # This one has ended before it was accepted.
                    continue
                self._held.append(connection)
            if not self._take(self._held[0]):
                # New connections wait in the kernel meanwhile.
                self._pause(_FULL_S)
                return
            self._held.popleft()
        if self._held:
            # Of many that came back: the listener need not become readable for them.
            self._pause(0)

    def _pause(self, seconds: float) -> None:
        if self._open:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            loop.call_later(seconds, self._go_on)


class Rarely:
    """Logs a warning that would be repeated all the time once a minute, with how often it was meant since."""

    def __init__(self) -> None:
        self._logged_at = -_LOG_EVERY_S
        self._unlogged = 0

    def log(self, message: str, *arguments: object) -> None:
        """Log it, unless that was done in the last minute."""
        now = perf_counter()
        if now - self._logged_at < _LOG_EVERY_S:
            self._unlogged += 1
            return
        again = f" ({self._unlogged} times more since the last line)" if self._unlogged else ""
        self._logged_at, self._unlogged = now, 0
        _log.warning(message + again, *arguments)


def begin_no_more_connections(listener: socket.socket) -> None:
    """Have the kernel ignore new handshakes, while those under way complete. Their clients try again after a second,
    and are refused once the listener is closed. Elsewhere than on Linux this does nothing."""
    if not sys.platform.startswith("linux"):
        return
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in _NO_NEW_HANDSHAKES))
    program = struct.pack("@HP", len(_NO_NEW_HANDSHAKES), ctypes.addressof(instructions))
    # The kernel of a sandbox may not have it. Then a connection made in the last moment may be reset.
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
