"""The sending end of a socket between processes: any thread sends, and none waits for a process that does not read."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Literal


class Outbox:
    """Sends whole frames in order over `end`, which it owns. A sending thread calls `on_full` when the socket has no
    room; then `flush` sends the rest.

    The lock protects decisions only; sending happens without it.
    """

    def __init__(self, end: socket.socket, on_full: Callable[[], None]) -> None:
        end.setblocking(False)
        self._end = end
        self._on_full = on_full
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._descriptors: list[int] = []
        # One thread sends at a time, and also sends the frames that other threads add meanwhile.
        self._state: Literal["idle", "sending", "full"] = "idle"
        self._closed = False
        self._progress_at = 0.0

    @property
    def full(self) -> bool:
        """Whether the rest waits for `flush`."""
        return self._state == "full"

    def stuck_seconds(self) -> float:
        """Seconds since the socket last took bytes; 0 unless the outbox is full."""
        return perf_counter() - self._progress_at if self.full else 0.0

    def send(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a frame behind those before it. `descriptors` arrive before its last byte; they stay the sender's, and
        open until `close`. Does nothing once closed."""
        with self._lock:
            if self._closed:
                return
            self._unsent += frame
            self._descriptors += descriptors
            if self._state != "idle":
                return
            self._state = "sending"
            self._progress_at = perf_counter()
        self._send_all()

    def flush(self) -> None:
        """Send what did not fit into the socket."""
        with self._lock:
            if self._state != "full":
                return
            self._state = "sending"
        self._send_all()

    def close(self) -> None:
        """Close the socket, without what was not sent yet. A thread that is sending closes it afterwards: until then no
        other file may get its number."""
        with self._lock:
            self._closed = True
            self._unsent.clear()
            if self._state == "sending":
                return
        self._end.close()

    def _send_all(self) -> None:
        while taken := self._take():
            unsent, descriptors = taken
            try:
                sent = socket.send_fds(self._end, [unsent], descriptors) if descriptors else self._end.send(unsent)
            except BlockingIOError:
                sent = 0
            except OSError:
                # The other end is closed. Shut down this one, so that its reader sees the end as well.
                with suppress(OSError):
                    self._end.shutdown(socket.SHUT_RDWR)
                sent = len(unsent)
            if sent == len(unsent):
                continue
            del unsent[:sent]
            if self._put_back(unsent, [] if sent else descriptors, progress=sent > 0):
                self._on_full()
                return

    def _take(self) -> tuple[bytearray, list[int]] | None:
        """Return what to send now; None if that is all."""
        with self._lock:
            if self._unsent:
                taken = self._unsent, self._descriptors
                self._unsent, self._descriptors = bytearray(), []
                return taken
            self._state = "idle"
            closed = self._closed
        if closed:
            self._end.close()
        return None

    def _put_back(self, rest: bytearray, descriptors: list[int], *, progress: bool) -> bool:
        """Keep the rest for `flush`. Return False if the outbox was closed meanwhile."""
        with self._lock:
            if self._closed:
                return False
            rest += self._unsent
            self._unsent = rest
            self._descriptors = descriptors + self._descriptors
            self._state = "full"
            if progress:
                self._progress_at = perf_counter()
            return True
