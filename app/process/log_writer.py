"""Write log lines to a file descriptor from a background thread, so that a slow log reader never blocks a request."""

from __future__ import annotations

import io
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from queue import SimpleQueue
from typing import Literal, TextIO

# Why a line was not written: the queue was full, or formatting or writing the line failed.
DropReason = Literal["full", "error"]

# Maximum number of queued lines: some seconds of a busy service, about 2 MB.
QUEUE_LINES = 4096

# Delay from the first queued line to the write; lines queued meanwhile share one wake-up and one system call.
_GATHER_S = 0.01

# Maximum delay that a stalled log reader adds to the end of the process.
_CLOSE_TIMEOUT_S = 1.0


class LineWriter:
    """A bounded queue of lines and the thread that writes them, in order. Thread-safe, and safe in signal handlers.

    Lines that do not fit in the queue, and lines whose write fails, are dropped and counted.
    """

    def __init__(self, descriptor: int, lost_line: Callable[[int], str | None]) -> None:
        """`lost_line` formats the line that reports dropped lines, or returns None for none. It is written once writing
        works again."""
        self._descriptor = descriptor
        self._lost_line = lost_line
        # SimpleQueue.put is reentrant, unlike that of queue.Queue: a signal handler may log while this thread logs.
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._dropped: dict[DropReason, int] = {"full": 0, "error": 0}
        self._count_lock = threading.RLock()
        self._reported = 0
        # Whether the last write ended within a line; then the next write begins with a line break.
        self._torn = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> Mapping[DropReason, int]:
        """Number of lines dropped so far, by reason."""
        return self._dropped

    def put(self, text: str) -> None:
        """Queue `text`, one or more whole lines, or drop it. Never blocks and never raises OSError."""
        if self._queue.qsize() >= QUEUE_LINES:
            self.drop("full")
        else:
            self._queue.put(text.encode("utf-8", "backslashreplace"))

    def drop(self, reason: DropReason, lines: int = 1) -> None:
        """Count lines as dropped."""
        with self._count_lock:
            self._dropped[reason] += lines

    def close(self) -> None:
        """Wait up to a second until the queued lines are written. Lines put later are not written."""
        self._queue.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        closed = False
        while not closed:
            lines = [self._queue.get()]
            time.sleep(_GATHER_S)
            lines += [self._queue.get() for _ in range(self._queue.qsize())]
            closed = None in lines
            written = [self._write(piece) for piece in _pieces([line for line in lines if line is not None])]
            if not written or written[-1]:
                self._report_lost()

    def _report_lost(self) -> None:
        lost = sum(self._dropped.values()) - self._reported
        # While lines are queued, more may be lost; report them together later.
        if lost and self._queue.empty():
            line = self._lost_line(lost)
            if line is None or self._write([line.encode()]):
                self._reported += lost

    def _write(self, lines: Sequence[bytes]) -> bool:
        start = b"\n" if self._torn else b""
        data, written = start + b"".join(lines), 0
        try:
            while written < len(data):
                written += self._write_some(data[written:])
        except OSError:
            self.drop("error", sum(len(start) + end > written for end in accumulate(map(len, lines))))
            if written:
                self._torn = not data[:written].endswith(b"\n")
            return False
        self._torn = False
        return True

    def _write_some(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                # Another process has set O_NONBLOCK on the shared file description.
                writable = select.poll()
                writable.register(self._descriptor, select.POLLOUT)
                writable.poll()


class PrintedText(io.TextIOBase):
    """A text stream in place of `sys.stdout` and `sys.stderr` that queues printed text and tracebacks as log lines."""

    def __init__(self, writer: LineWriter, stderr: TextIO) -> None:
        super().__init__()
        self._writer = writer
        self._descriptor = stderr.fileno()
        self._terminal = stderr.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in TextIOBase
        return "utf-8"

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._writer.put(text)
        return len(text)

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._terminal


def _pieces(lines: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Group lines into pieces of at most PIPE_BUF bytes, which the kernel writes to a pipe atomically."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > select.PIPE_BUF:
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield piece
