"""A transport that closes without losing the response just sent, and disconnects clients that do not read."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from contextlib import suppress
from typing import Any

# Maximum number of bytes discarded: four times the default body limit. Clients that write a whole body before they
# read the response receive it up to this size.
_MAX_DISCARDED_BYTES = 256 * 1024 * 1024

# Maximum duration of a lingering close, as in nginx, and while the server shuts down.
_LINGER_S = 30.0
_SHUTDOWN_S = 2.0

# Bytes that a client must read per period, or all that remains if that is less: asyncio's default high-water mark.
# TCP_USER_TIMEOUT is no replacement: a client that reads one byte at a time would keep a response for hours.
_MIN_READ_BYTES = 64 * 1024


class BoundedTransport:
    """An asyncio transport whose `close` lingers while `client_may_send` (RFC 9112, section 9.6).

    If both directions are closed at once, the kernel answers data that still arrives with a reset, and a client drops
    an unread response when it is reset. A lingering close therefore closes the sending side first and discards what
    arrives, until the client closes or has sent 256 MiB, or until `timeout_s`, at most 30 s, is over.

    The reader timer aborts the connection if the client reads less than 64 KiB of a response in `timeout_s`.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._transport = transport
        self._loop = loop
        self._timeout_s = timeout_s
        self._linger_s = min(timeout_s, _LINGER_S)
        self._discarded_bytes = 0
        self._linger_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
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
            try:
                self._transport.write_eof()
            except OSError:
                # The client has reset the connection. While reading is paused, nothing else reports that.
                self._transport.abort()
                return
            self.lingering = True
            # Reading may be paused, for a body that no handler has asked for yet.
            self._transport.resume_reading()
            self._linger_timer = self._loop.call_later(self._linger_s, self._transport.close)
        else:
            self._transport.close()
        if self._transport.get_write_buffer_size():
            # asyncio would wait without limit until it is sent.
            self.start_reader_timer()

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

    def shorten_linger(self) -> None:
        """Limit the lingering close to 2 s, from now or from its start, because the server shuts down."""
        self._linger_s = min(self._linger_s, _SHUTDOWN_S)
        if self._linger_timer is not None and self._linger_timer.when() > self._loop.time() + self._linger_s:
            self._linger_timer.cancel()
            self._linger_timer = self._loop.call_later(self._linger_s, self._transport.close)

    def start_reader_timer(self) -> None:
        """Start the reader timer, unless it runs: unread data remains."""
        if self._reader_timer is None:
            self._reader_timer = self._loop.call_later(self._timeout_s, self._check_reader, self._unread_bytes())

    def cancel_reader_timer(self) -> None:
        """Stop the reader timer: the client has read the data."""
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def cancel_timers(self) -> None:
        """Stop all timers: the connection is lost."""
        self.cancel_reader_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _check_reader(self, unread_before: int) -> None:
        self._reader_timer = None
        if unread_before - self._unread_bytes() < _MIN_READ_BYTES:
            self._transport.abort()
        else:
            self.start_reader_timer()

    def _unread_bytes(self) -> int:
        """Return the bytes that the client has not acknowledged, in this process and in the kernel's send buffer.

        The kernel holds up to megabytes, and accepts more only after a third of them has been read.
        """
        buffered = self._transport.get_write_buffer_size()
        try:
            queued = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            # Not Linux: only this process's own buffer is known.
            return buffered
        return buffered + int(struct.unpack("i", queued)[0])
