"""A log that cannot be written loses lines and reports how many; logging never blocks and never raises."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest

from app.process import log_writer
from app.process.log_writer import LineWriter, PrintedText

_PATIENCE_S = 30

StartWriter = Callable[[int], LineWriter]


def lost_line(lost: int) -> str:
    return f"lost {lost}\n"


@pytest.fixture
def start_writer() -> Iterator[StartWriter]:
    with ExitStack() as ending:

        def start(descriptor: int) -> LineWriter:
            writer = LineWriter(descriptor, lost_line)
            ending.callback(writer.close)
            return writer

        yield start


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Read and write end of a pipe with a buffer of one page."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    yield read, write
    os.close(read)
    os.close(write)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = monotonic() + _PATIENCE_S
    while not holds():
        assert monotonic() < deadline


def read_until(descriptor: int, end: bytes) -> list[bytes]:
    """Read lines until the last one begins with `end`."""
    text = b""
    while not text.endswith(b"\n") or not text.splitlines()[-1].startswith(end):
        text += os.read(descriptor, 1 << 16)
    return text.splitlines()


def test_lines_are_written_in_order_in_pieces_that_the_kernel_writes_atomically(
    start_writer: StartWriter,
) -> None:
    # A datagram socket keeps each write apart.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        writer = start_writer(theirs.fileno())
        for number in range(100):
            writer.put(f"{number} {'é' * 100}\n")
        pieces = []
        while sum(piece.count(b"\n") for piece in pieces) < 100:
            pieces.append(ours.recv(1 << 16))

    assert len(pieces) < 25
    assert all(len(piece) <= select.PIPE_BUF and piece.endswith(b"\n") for piece in pieces)
    assert [int(line.split()[0]) for line in b"".join(pieces).splitlines()] == list(range(100))


def test_a_stalled_reader_does_not_block_and_lines_beyond_the_queue_limit_are_counted(
    start_writer: StartWriter, pipe: tuple[int, int]
) -> None:
    read, write = pipe
    writer = start_writer(write)
    lines = 3 * log_writer.QUEUE_LINES
    for number in range(lines):
        writer.put(f"{number}\n")

    lost = writer.dropped["full"]
    assert 0 < lost < lines
    *numbers, last = read_until(read, b"lost")
    assert last == f"lost {lost}".encode()
    assert len(numbers) == lines - lost
    assert sorted(numbers, key=int) == numbers


def test_closing_waits_at_most_about_a_second_for_a_stalled_reader(
    start_writer: StartWriter, pipe: tuple[int, int]
) -> None:
    _, write = pipe
    writer = start_writer(write)
    writer.put("x" * 2 * select.PIPE_BUF + "\n")
    began = monotonic()
    writer.close()

    assert 1 <= monotonic() - began < _PATIENCE_S
    # Free the thread, which still writes to the pipe.
    os.read(pipe[0], 1 << 16)


def test_lines_lost_without_a_reader_are_counted_and_reported_to_the_next_reader(
    start_writer: StartWriter, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    first_reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write = os.open(path, os.O_WRONLY)
    os.close(first_reader)
    writer = start_writer(write)
    writer.put("lost\n")
    wait_until(lambda: writer.dropped["error"] == 1)

    read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(read, True)
    writer.put("the next\n")
    assert read_until(read, b"lost") == [b"the next", b"lost 1"]
    writer.close()
    os.close(read)
    os.close(write)


def test_the_line_after_one_cut_off_by_a_full_disk_starts_on_a_new_line(
    start_writer: StartWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    room = len("first\nsec")

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(descriptor, data[:room])
        room -= written
        return written

    monkeypatch.setattr(log_writer.os, "write", write)
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        writer = start_writer(file.fileno())
        writer.put("first\n")
        writer.put("second\n")
        wait_until(lambda: writer.dropped["error"] > 0)
        room = 1 << 16
        writer.put("third\n")
        writer.close()

    assert writer.dropped == {"full": 0, "error": 1}
    assert path.read_text() == "first\nsec\nthird\nlost 1\n"


def test_no_line_is_lost_on_a_pipe_that_another_process_made_non_blocking(
    start_writer: StartWriter, pipe: tuple[int, int]
) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    writer = start_writer(write)
    lines = log_writer.QUEUE_LINES // 2
    for number in range(lines):
        writer.put(f"{number}\n")

    assert len(read_until(read, str(lines - 1).encode())) == lines
    assert sum(writer.dropped.values()) == 0


def test_a_signal_handler_can_drop_a_line_while_the_interrupted_thread_holds_the_lock(
    start_writer: StartWriter, pipe: tuple[int, int]
) -> None:
    writer = start_writer(pipe[1])
    before = signal.signal(signal.SIGUSR1, lambda *_: writer.drop("full"))
    try:
        with writer._count_lock:  # noqa: SLF001 - the lock that the interrupted code holds
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert writer.dropped["full"] == 1


def test_printed_text_is_written_in_order_with_the_log_lines(start_writer: StartWriter, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        writer = start_writer(file.fileno())
        printed = PrintedText(writer, file)
        writer.put("before\n")
        printed.write("printed")
        printed.write("\n")
        writer.put("after\n")
        writer.close()

    assert path.read_text() == "before\nprinted\nafter\n"


def test_characters_that_cannot_be_encoded_are_written_escaped(start_writer: StartWriter, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb", buffering=0) as file:
        writer = start_writer(file.fileno())
        writer.put("\udc80\n")
        writer.close()

    assert path.read_bytes() == b"\\udc80\n"


def test_writing_to_a_closed_descriptor_only_drops_the_line(start_writer: StartWriter) -> None:
    read, write = os.pipe()
    os.close(read)
    writer = start_writer(write)
    os.close(write)
    writer.put("nowhere\n")
    writer.close()

    assert writer.dropped["error"] == 1
