"""Abort connections whose clients do not read their responses."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios

# Bytes that a client must read per period, or all that remains if that is less: asyncio's default high-water mark.
# TCP_USER_TIMEOUT is no replacement: a client that reads one byte at a time would keep a response for hours.
_MIN_READ_BYTES = 64 * 1024


class SlowReaderTimeout:
    """Aborts the connection if the client reads less than 64 KiB of a response in `period_s` seconds."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, period_s: float) -> None:
        self._transport = transport
        self._loop = loop
        self._period_s = period_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the period, unless one is running: unread data remains."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._period_s, self._check, _unread_bytes(self._transport))

    def cancel(self) -> None:
        """Stop the period: the client has read the data, or the connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, unread_before: int) -> None:
        self._timer = None
        if unread_before - _unread_bytes(self._transport) < _MIN_READ_BYTES:
            self._transport.abort()
        else:
            self.start()


def _unread_bytes(transport: asyncio.Transport) -> int:
    """Return the bytes that the client has not acknowledged, in this process and in the kernel's send buffer.

    The kernel holds up to megabytes, and accepts more only after a third of them has been read.
    """
    buffered = transport.get_write_buffer_size()
    try:
        queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        # Not Linux: only this process's own buffer is known.
        return buffered
    return buffered + int(struct.unpack("i", queued)[0])
