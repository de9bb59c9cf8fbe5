"""Frames to a worker are sent whole and in order by whichever thread has one, and none of them waits for it to read."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from models.workers.outbox import Outbox

_PATIENCE_S = 30
_FRAME_BYTES = 4096


class _Full:
    """How often an outbox has said that its socket is full."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        there.settimeout(_PATIENCE_S)
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
        thread.join(_PATIENCE_S)

    for sender in range(4):
        assert [frame for frame in frames if frame[0] == sender] == [_frame(sender, number) for number in range(100)]


def test_a_socket_that_is_full_holds_nobody_up_and_the_rest_follows_when_it_is_read(
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


def test_whoever_reads_learns_that_the_other_end_takes_nothing_any_more(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    outbox = Outbox(pair[0], _Full())
    pair[1].close()
    outbox.send(b"nobody reads this")

    assert pair[0].recv(1) == b""
    outbox.send(b"nor this")


class _SlowSocket:
    """Stands in for a socket whose `send` takes until it is let go."""

    def __init__(self) -> None:
        self.sending, self.let_go = threading.Event(), threading.Event()
        self.closed = False

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - as socket has it
        assert not flag

    def send(self, unsent: bytes) -> int:
        self.sending.set()
        assert self.let_go.wait(_PATIENCE_S)
        assert not self.closed
        return len(unsent)

    def close(self) -> None:
        self.closed = True


def test_a_socket_is_not_closed_under_a_thread_that_sends() -> None:
    end = _SlowSocket()
    outbox = Outbox(end, _Full())  # type: ignore[arg-type]  # has what is needed of one
    thread = threading.Thread(target=outbox.send, args=(b"frame",))
    thread.start()
    assert end.sending.wait(_PATIENCE_S)
    outbox.send(b"added meanwhile, and not sent any more")
    outbox.close()
    assert not end.closed
    end.let_go.set()
    thread.join(_PATIENCE_S)

    assert end.closed
    outbox.send(b"nothing")
