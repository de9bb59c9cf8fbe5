"""Close a connection without losing the answer that was just sent on it (RFC 9112, section 9.6)."""

from __future__ import annotations

import asyncio

# A client that sends nothing for so long has stopped sending, or will never stop.
_QUIET_S = 5.0

# Four times the largest body that is accepted by default. Clients that write a whole body before they read the answer
# get theirs up to here.
_MOST_BYTES = 256 * 1024 * 1024

# While the service stops nobody waits for long.
_HURRIED_S = 2.0


class LingeringClose:
    """Closes one side of a connection, and the other once the client has stopped sending.

    Closing both at once makes the kernel answer what still arrives with a reset, and a client that is reset drops an
    answer that it has not read yet. So the sending side is closed first, and what arrives is dropped: until the client
    closes, or is quiet for 5 s, or has sent 256 MiB, or `most_s` seconds are over.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, most_s: float) -> None:
        self._transport = transport
        self._loop = loop
        self._most_s = most_s
        self._ends_at = 0.0
        self._bytes = 0
        self._bytes_before = 0
        self._timer: asyncio.TimerHandle | None = None
        self.begun = False

    def begin(self) -> None:
        """Send what has been written, close the sending side, and drop what arrives from now on."""
        self.begun = True
        self._ends_at = self._loop.time() + self._most_s
        self._transport.write_eof()
        # It may be paused, for a body that was not wanted yet.
        self._transport.resume_reading()
        self._wait()

    def received(self, count: int) -> None:
        """Drop that many bytes."""
        self._bytes += count
        if self._bytes > _MOST_BYTES:
            self._transport.close()

    def hurry(self) -> None:
        """Take no longer than 2 s from now on, or from when it begins."""
        self._most_s = min(self._most_s, _HURRIED_S)
        self._ends_at = min(self._ends_at, self._loop.time() + self._most_s)
        if self.begun:
            self.end()
            self._wait()

    def end(self) -> None:
        """Stop waiting: the connection is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        left_s = self._ends_at - self._loop.time()
        self._timer = self._loop.call_later(min(left_s, _QUIET_S), self._look)

    def _look(self) -> None:
        quiet = self._bytes == self._bytes_before
        self._bytes_before = self._bytes
        if quiet or self._loop.time() >= self._ends_at:
            self._transport.close()
        else:
            self._wait()
