"""Messages between the engine process and a worker: whole objects over a socket, with file descriptors where one has
some. Only processes of this service hold its ends, so objects are pickled."""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

_log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 18
# Linux takes no more with one message (SCM_MAX_FD).
_MOST_DESCRIPTORS = 253


class Channel:
    """One end, on an event loop. `on_message` gets each object, and the descriptors that came by then, as a queue of
    which it takes those that are the message's. `on_end` is called once: with None when the other end is there no more,
    or with what a message raised, for an end that does not go by a message must not go on as if it had."""

    def __init__(
        self,
        end: socket.socket,
        on_message: Callable[[Any, deque[int]], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        end.setblocking(False)
        self._socket = end
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._incoming = bytearray()
        self._descriptors: deque[int] = deque()
        self._outgoing: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._open = True
        self._loop.add_reader(end, self._receive)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send an object, and descriptors, which stay the caller's and open until `close`. To an end that is there no
        more nothing is sent."""
        if not self._open:
            return
        payload = pickle.dumps(message)
        self._outgoing.append((memoryview(_LENGTH.pack(len(payload)) + payload), descriptors))
        if len(self._outgoing) == 1:
            self._send()

    def close(self) -> None:
        """Close this end. What has not been sent yet is not."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _send(self) -> None:
        while self._outgoing:
            rest, descriptors = self._outgoing.popleft()
            try:
                # A message's descriptors go with its first byte.
                sent = socket.send_fds(self._socket, [rest], descriptors) if descriptors else self._socket.send(rest)
            except BlockingIOError:
                sent = 0
            except OSError:
                # The reader will hear of it.
                self._outgoing.clear()
                break
            if sent < len(rest):
                self._outgoing.appendleft((rest[sent:], () if sent else descriptors))
                self._loop.add_writer(self._socket, self._send)
                return
        self._loop.remove_writer(self._socket)

    def _receive(self) -> None:
        try:
            piece, descriptors, _, _ = socket.recv_fds(self._socket, _PIECE, _MOST_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            piece, descriptors = b"", []
        if not piece:
            self._end(None)
            return
        self._descriptors.extend(descriptors)
        self._incoming += piece
        try:
            while self._open and (message := _first(self._incoming)) is not None:
                self._on_message(message[0], self._descriptors)
        except Exception as error:  # noqa: BLE001 - whatever it was, it ends this channel alone
            _log.exception("a message between processes cannot be acted on")
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._open:
            self.close()
            self._on_end(error)


def receive_first(end: socket.socket) -> tuple[Any, list[int]]:
    """The first message on a socket that blocks, and its descriptors; nothing after it is read. Raises EOFError."""
    piece, descriptors, _, _ = socket.recv_fds(end, _LENGTH.size, _MOST_DESCRIPTORS)
    head = piece + _exactly(end, _LENGTH.size - len(piece))
    return pickle.loads(_exactly(end, *_LENGTH.unpack(head))), descriptors  # noqa: S301 - of our own


def _exactly(end: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = end.recv(min(size - len(received), _PIECE))
        if not piece:
            raise EOFError("the other end of the channel is there no more")
        received += piece
    return bytes(received)


def _first(incoming: bytearray) -> tuple[Any] | None:
    """The first object, taken out of what has come, in a tuple, for it may be None; None while it is not whole."""
    if len(incoming) < _LENGTH.size:
        return None
    [length] = _LENGTH.unpack_from(incoming)
    end = _LENGTH.size + length
    if len(incoming) < end:
        return None
    payload = bytes(incoming[_LENGTH.size : end])
    del incoming[:end]
    return (pickle.loads(payload),)  # noqa: S301 - of our own
