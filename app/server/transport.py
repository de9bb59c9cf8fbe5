"""Close a connection without losing the response that was just sent on it (RFC 9112, section 9.6)."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# A client that sends nothing for this long has stopped sending, or will never stop.
_QUIET_S = 5.0

# Maximum number of bytes discarded: four times the default body limit. Clients that write a whole body before they
# read the response receive it up to this size.
_MAX_DISCARDED_BYTES = 256 * 1024 * 1024

# Maximum duration of a lingering close while the server shuts down.
_SHUTDOWN_S = 2.0


class LingeringTransport:
    """An asyncio transport whose `close` lingers while `client_may_send`.

    If both directions are closed at once, the kernel answers data that still arrives with a reset, and a client drops
    an unread response when it is reset. A lingering close therefore closes the sending side first and discards what
    arrives, until the client closes, is quiet for 5 s, or has sent 256 MiB, or until `timeout_s` is over.

    `on_unsent` is called if unsent data remains when the connection closes; asyncio would wait for it without limit.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        on_unsent: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._timeout_s = timeout_s
        self._on_unsent = on_unsent
        self._deadline = 0.0
        self._discarded_bytes = 0
        self._discarded_before = 0
        self._timer: asyncio.TimerHandle | None = None
        self.client_may_send = False
        self.lingering = False

    def write(self, data: bytes) -> None:
        """Send `data`; drop it if the connection is closing."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close after everything written has been sent."""
        if self.lingering:
            return
        if self.client_may_send and not self._transport.is_closing():
            self._linger()
        else:
            self._transport.close()
        if self._transport.get_write_buffer_size():
            self._on_unsent()

    def close_threadsafe(self) -> None:
        """Close soon. May be called from any thread, and after the event loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.close)

    def is_closing(self) -> bool:
        """Return whether nothing can be sent any more."""
        return self.lingering or self._transport.is_closing()

    def discard(self, count: int) -> None:
        """Count received bytes that are dropped during a lingering close."""
        self._discarded_bytes += count
        if self._discarded_bytes > _MAX_DISCARDED_BYTES:
            self._transport.close()

    def shorten(self) -> None:
        """Limit the lingering close to 2 s, from now or from its start, because the server shuts down."""
        self._timeout_s = min(self._timeout_s, _SHUTDOWN_S)
        self._deadline = min(self._deadline, self._loop.time() + self._timeout_s)
        if self.lingering:
            self.cancel_timer()
            self._start_timer()

    def cancel_timer(self) -> None:
        """Stop the timer; the connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _linger(self) -> None:
        self.lingering = True
        self._deadline = self._loop.time() + self._timeout_s
        self._transport.write_eof()
        # Reading may be paused, for a body that no handler has asked for yet.
        self._transport.resume_reading()
        self._start_timer()

    def _start_timer(self) -> None:
        remaining_s = self._deadline - self._loop.time()
        self._timer = self._loop.call_later(min(remaining_s, _QUIET_S), self._check)

    def _check(self) -> None:
        quiet = self._discarded_bytes == self._discarded_before
        self._discarded_before = self._discarded_bytes
        if quiet or self._loop.time() >= self._deadline:
            self._transport.close()
        else:
            self._start_timer()


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
