"""Frames on their way to a worker: any thread sends them, and none of them waits for a worker that does not read."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Literal


class Outbox:
    """Sends whole frames in order over `end`, which it owns. `on_full` is called, from a thread that sends, when the
    socket takes no more: the rest is sent by `flush`, once there is room.

    What is to be sent is decided under the lock, and sent without it.
    """

    def __init__(self, end: socket.socket, on_full: Callable[[], None]) -> None:
        end.setblocking(False)
        self._end = end
        self._on_full = on_full
        self._lock = threading.Lock()
        self._unsent = bytearray()
        # One thread sends at a time, and takes along what others add meanwhile.
        self._state: Literal["idle", "sending", "full"] = "idle"
        self._closed = False
        self._took_at = 0.0

    @property
    def full(self) -> bool:
        """Whether what is left waits for `flush`."""
        return self._state == "full"

    def stuck_seconds(self) -> float:
        """How long the worker has taken nothing of what waits for it; 0 while nothing does."""
        return perf_counter() - self._took_at if self.full else 0.0

    def send(self, frame: bytes) -> None:
        """Send a frame behind those before it. To a worker that is gone nothing is sent."""
        with self._lock:
            if self._closed:
                return
            self._unsent += frame
            if self._state != "idle":
                return
            self._state = "sending"
            self._took_at = perf_counter()
        self._send_all()

    def flush(self) -> None:
        """Send what was left because the socket was full."""
        with self._lock:
            if self._state != "full":
                return
            self._state = "sending"
        self._send_all()

    def close(self) -> None:
        """Close the socket, at the latest when the thread that sends has done so: until then its number must not be
        another file's. What has not been sent is not."""
        with self._lock:
            self._closed = True
            self._unsent.clear()
            if self._state == "sending":
                return
        self._end.close()

    def _send_all(self) -> None:
        while unsent := self._take():
            try:
                sent = self._end.send(unsent)
            except BlockingIOError:
                sent = 0
            except OSError:
                # Whoever reads from the socket finds that it has ended.
                with suppress(OSError):
                    self._end.shutdown(socket.SHUT_RDWR)
                sent = len(unsent)
            if sent < len(unsent) and self._put_back(unsent, sent):
                self._on_full()
                return

    def _take(self) -> bytearray | None:
        """What is to be sent now; None when that is all."""
        with self._lock:
            if self._unsent:
                unsent, self._unsent = self._unsent, bytearray()
                return unsent
            self._state = "idle"
            closed = self._closed
        if closed:
            self._end.close()
        return None

    def _put_back(self, unsent: bytearray, sent: int) -> bool:
        """Keep the rest for `flush`. False where the outbox was closed meanwhile."""
        with self._lock:
            if self._closed:
                return False
            self._unsent[:0] = unsent[sent:]
            self._state = "full"
            if sent:
                self._took_at = perf_counter()
            return True
