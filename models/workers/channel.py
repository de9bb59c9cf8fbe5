"""Whole objects over a socket between two processes of the service, with file descriptors where a message has some.

Why not multiprocessing.connection: its `recv` blocks until the whole message has arrived, its `send` until there is
room. An event loop may wait for neither: the other process may be stopped."""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from models.workers.outbox import Outbox

_log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<Q")
_READ_BYTES = 1 << 18
# Linux sends no more with one message (SCM_MAX_FD).
_MAX_DESCRIPTORS = 253


def frame(message: object) -> bytes:
    """Return a message as bytes: the length of its pickle, then the pickle."""
    payload = pickle.dumps(message)
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts the bytes of a socket into messages. Only processes of this service hold the other end."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes) -> Iterator[Any]:
        """Yield the messages that are complete with `received`. Each is yielded once, even if unpickling or processing
        it raises."""
        buffer = self._buffer
        buffer += received
        while len(buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
            if end > len(buffer):
                return
            payload = bytes(buffer[_LENGTH.size : end])
            del buffer[:end]
            yield pickle.loads(payload)  # noqa: S301 - sent by a process of this service


class Channel:
    """One end of a socket, read on the running event loop.

    `on_message` gets each message and the descriptors that have arrived so far; it removes those of the message.
    `on_end` is called once: with None if the other end was closed, or with the exception that processing a message
    raised. After such an exception the two processes no longer agree, so the channel ends."""

    def __init__(
        self,
        end: socket.socket,
        on_message: Callable[[Any, deque[int]], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self._socket = end
        self._outbox = Outbox(end, self._wait_for_room)
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._frames = FrameReader()
        self._descriptors: deque[int] = deque()
        self._open = True
        self._loop.add_reader(end, self._receive)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send a message, from any thread. `descriptors` stay the sender's, and open until `close`. Does nothing if
        either end is closed."""
        self._outbox.send(frame(message), descriptors)

    def stuck_seconds(self) -> float:
        """Return how long the other end has read nothing of what waits for it; 0 if nothing waits."""
        # It may have read since the socket was full.
        self._outbox.flush()
        return self._outbox.stuck_seconds()

    def wait(self) -> None:
        """Block until something arrives, and process it. For a process that serves nothing yet."""
        wait([self._socket])
        self._receive()

    def close(self) -> None:
        """Close this end, without what was not sent yet. Event loop only."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._outbox.close()

    def _wait_for_room(self) -> None:
        # A loop that has ended sends no more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._flush_when_writable)

    def _flush_when_writable(self) -> None:
        if self._open:
            self._loop.add_writer(self._socket, self._flush)

    def _flush(self) -> None:
        self._loop.remove_writer(self._socket)
        self._outbox.flush()

    def _receive(self) -> None:
        try:
            received, descriptors, _, _ = socket.recv_fds(self._socket, _READ_BYTES, _MAX_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            received, descriptors = b"", []
        if not received:
            self._end(None)
            return
        self._descriptors.extend(descriptors)
        try:
            for message in self._frames.feed(received):
                self._on_message(message, self._descriptors)
                if not self._open:
                    return
        except Exception as error:  # noqa: BLE001 - any error ends this channel, and no other
            _log.exception("a message from another process cannot be processed")
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._open:
            self.close()
            self._on_end(error)
