"""Answers that their callers do not read: they would be kept, and their connections, as long as those like."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios

# What a caller must take of an answer each time; where that is less, all that is left. As much as a transport keeps
# before it asks for no more.
_LEAST_READ_BYTES = 64 * 1024


class SlowReaders:
    """Cuts a connection off when its caller, with `patience_s` for each 64 KiB, does not read."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, patience_s: float) -> None:
        self._transport = transport
        self._loop = loop
        self._patience_s = patience_s
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """From now on something waits to be read."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience_s, self._look, _unread_bytes(self._transport))

    def end(self) -> None:
        """What waited has been read, or the connection is no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, unread: int) -> None:
        self._timer = None
        if unread - _unread_bytes(self._transport) < _LEAST_READ_BYTES:
            self._transport.abort()
        else:
            # A slow line is no offence.
            self.begin()


def _unread_bytes(transport: asyncio.Transport) -> int:
    """What has not reached the other side, here and in the kernel, which keeps up to megabytes and takes more only when
    a third of that has gone."""
    kept = transport.get_write_buffer_size()
    try:
        queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        # Linux tells; elsewhere what this process keeps has to do.
        return kept
    return kept + int(struct.unpack("i", queued)[0])
