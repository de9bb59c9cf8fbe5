"""Messages between two processes of the service, with file descriptors where a message has some.

The kernel keeps each message of a SOCK_SEQPACKET socket whole. Why not multiprocessing.connection: its `send` and
`recv` block while the other process is stopped."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import socket
import struct
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, NamedTuple

_log = logging.getLogger(__name__)

# Room for a message about each slot of a worker. The kernel may grant less.
_BUFFER_BYTES = 1 << 20
# A longer message is sent in several packets, because a socket takes none above the size of its buffer.
_PACKET_BYTES = 1 << 15
# Before each packet: the number of its message, and whether more of it follows.
_HEAD = struct.Struct("<I?")
_numbers = itertools.count()
# Linux sends no more with one message (SCM_MAX_FD).
_MAX_DESCRIPTORS = 253
# Messages that one callback of the event loop reads, at most.
_READ_AT_ONCE = 64


class _Packet(NamedTuple):
    payload: bytes
    descriptors: Sequence[int]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a socket for channels."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ends


class Channel:
    """One end of a socket, read on the running event loop. It belongs to the channel.

    `on_message` gets each message and its descriptors, which it then owns. `on_end` is called once: with None if the
    other end was closed, or with the exception that processing a message raised. After such an exception the two
    processes no longer agree, so the channel ends."""

    def __init__(
        self,
        end: socket.socket,
        on_message: Callable[[Any, list[int]], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        end.setblocking(False)
        self._socket = end
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        # Messages that found the socket full. Only the event loop removes them.
        self._unsent: deque[_Packet] = deque()
        # Messages of which more follows, with their descriptors, by number.
        self._begun: dict[int, tuple[bytearray, list[int]]] = {}
        self._open = True
        self._loop.add_reader(end, self._receive)
        # Not in `close`: another file could get its number while a thread is about to send.
        weakref.finalize(self, end.close)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send a message from any thread, without blocking. A thread's messages arrive in order. `descriptors` stay the
        sender's, and open until `close`. Does nothing if either end is closed."""
        for packet in _packets(message, descriptors):
            if self._unsent or not self._sent(packet):
                self._unsent.append(packet)
                # A loop that has ended sends no more.
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._send_waiting)

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
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._unsent.clear()

    def _sent(self, packet: _Packet) -> bool:
        """Return False if the socket has no room."""
        try:
            if packet.descriptors:
                socket.send_fds(self._socket, [packet.payload], packet.descriptors)
            else:
                self._socket.send(packet.payload)
        except BlockingIOError:
            return False
        except OSError:
            # The other end is closed. Shut down this one, so that its reader sees the end as well.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        return True

    def _send_waiting(self) -> None:
        while self._unsent:
            # It stays there meanwhile, so that no later message of its thread overtakes it.
            if not self._sent(self._unsent[0]):
                self._loop.add_writer(self._socket, self._send_waiting)
                return
            self._unsent.popleft()
        if self._open:
            self._loop.remove_writer(self._socket)

    def _receive(self) -> None:
        for _ in range(_READ_AT_ONCE):
            try:
                payload, descriptors, _, _ = socket.recv_fds(self._socket, _HEAD.size + _PACKET_BYTES, _MAX_DESCRIPTORS)
            except BlockingIOError:
                return
            except OSError:
                payload, descriptors = b"", []
            if not payload:
                self._end(None)
                return
            try:
                self._received(payload, descriptors)
            except Exception as error:  # noqa: BLE001 - any error ends this channel, and no other
                _log.exception("a message from another process cannot be processed")
                self._end(error)
            if not self._open:
                return

    def _received(self, packet: bytes, descriptors: list[int]) -> None:
        number, more = _HEAD.unpack_from(packet)
        payload: bytes | bytearray = packet[_HEAD.size :]
        if more or number in self._begun:
            payload, first = self._begun.setdefault(number, (bytearray(), descriptors))
            payload += packet[_HEAD.size :]
            if more:
                return
            del self._begun[number]
            descriptors = first
        # Only processes of this service send.
        self._on_message(pickle.loads(payload), descriptors)  # noqa: S301

    def _end(self, error: Exception | None) -> None:
        if self._open:
            self.close()
            self._on_end(error)


def _packets(message: object, descriptors: Sequence[int]) -> Iterator[_Packet]:
    """Yield the packets of a message, the descriptors with the first one."""
    payload = pickle.dumps(message)
    number = next(_numbers) & 0xFFFFFFFF
    for start in range(0, len(payload), _PACKET_BYTES):
        more = start + _PACKET_BYTES < len(payload)
        piece = payload if len(payload) <= _PACKET_BYTES else payload[start : start + _PACKET_BYTES]
        yield _Packet(_HEAD.pack(number, more) + piece, () if start else descriptors)
