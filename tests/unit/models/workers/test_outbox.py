"""Any thread sends frames whole and in order, and none waits for the other end to read."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from models.workers.outbox import Outbox

_TIMEOUT_S = 30
_FRAME_BYTES = 4096


class _Full:
    """Counts the calls of `on_full`."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        there.settimeout(_TIMEOUT_S)
        yield here, there


def _frame(sender: int, number: int) -> bytes:
    return bytes([sender, number]) * (_FRAME_BYTES // 2)


def _read(end: socket.socket, frames: int) -> list[bytes]:
    received = b""
    while len(received) < frames * _FRAME_BYTES:
        received += end.recv(1 << 20)
    return [received[at : at + _FRAME_BYTES] for at in range(0, len(received), _FRAME_BYTES)]


def test_frames_of_several_threads_arrive_whole_and_each_threads_in_order(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    flushing = threading.Semaphore(0)
    outbox = Outbox(pair[0], flushing.release)
    over = threading.Event()

    def flush() -> None:
        while not over.is_set():
            if flushing.acquire(timeout=0.01):
                while outbox.full:
                    outbox.flush()

    def send(sender: int) -> None:
        for number in range(100):
            outbox.send(_frame(sender, number))

    threads = [threading.Thread(target=flush), *(threading.Thread(target=send, args=(one,)) for one in range(4))]
    for thread in threads:
        thread.start()
    frames = _read(pair[1], 400)
    over.set()
    for thread in threads:
        thread.join(_TIMEOUT_S)

    for sender in range(4):
        assert [frame for frame in frames if frame[0] == sender] == [_frame(sender, number) for number in range(100)]


def test_sending_to_a_full_socket_does_not_block_and_the_rest_follows_when_it_is_read(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    full = _Full()
    outbox = Outbox(pair[0], full)
    assert outbox.stuck_seconds() == 0
    sent = 0
    while not outbox.full:
        outbox.send(_frame(0, sent % 256))
        sent += 1
    outbox.send(_frame(1, 0))
    outbox.flush()
    assert outbox.stuck_seconds() > 0

    frames: list[bytes] = []
    while len(frames) < sent + 1:
        frames += _read(pair[1], 1)
        outbox.flush()

    assert frames == [*(_frame(0, number % 256) for number in range(sent)), _frame(1, 0)]
    assert full.times > 0
    assert not outbox.full
    assert outbox.stuck_seconds() == 0


def test_sending_to_a_closed_end_ends_reading_as_well(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    outbox = Outbox(pair[0], _Full())
    pair[1].close()
    outbox.send(b"never read")

    assert pair[0].recv(1) == b""
    outbox.send(b"never read either")


class _SlowSocket:
    """Has the methods of a socket whose `send` blocks until it is released."""

    def __init__(self) -> None:
        self.sending, self.release = threading.Event(), threading.Event()
        self.closed = False

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - as socket has it
        assert not flag

    def send(self, unsent: bytes) -> int:
        self.sending.set()
        assert self.release.wait(_TIMEOUT_S)
        assert not self.closed
        return len(unsent)

    def close(self) -> None:
        self.closed = True


def test_a_socket_is_not_closed_while_a_thread_sends() -> None:
    end = _SlowSocket()
    outbox = Outbox(end, _Full())  # type: ignore[arg-type]  # it has the methods that are called
    thread = threading.Thread(target=outbox.send, args=(b"frame",))
    thread.start()
    assert end.sending.wait(_TIMEOUT_S)
    outbox.send(b"added meanwhile, and never sent")
    outbox.close()
    assert not end.closed
    end.release.set()
    thread.join(_TIMEOUT_S)

    assert end.closed
    outbox.send(b"nothing")
