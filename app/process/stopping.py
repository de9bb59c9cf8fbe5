"""The end of a process: in time, whatever hangs in it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from app.process.logs import exit_at_once

_log = logging.getLogger(__name__)

# Beyond the time to drain: for the threads to end, and for the processes of HTTP workers.
FORCED_AFTER_DRAIN_S = 8.0

# Log handlers have so long for the last line: whoever reads the log may have stopped.
_LAST_LINE_S = 1.0

# The handlers of signals have so long, when the main thread is free to run them.
_HANDLERS_S = 0.5


def end_process(failure: str | None) -> NoReturn:
    """End the process: with status 0, or with 1 and the reason in the log.

    Not by sys.exit, which waits for each thread that is left: one may hang in a forward, or wait for one that does.
    """
    if failure is not None:
        _log.critical("ended: %s", failure)
    exit_at_once(0 if failure is None else 1)


def end_process_within(seconds: float, reason: str, before: Callable[[], None] = lambda: None) -> None:
    """End the process with status 1 and that reason in so many seconds, unless it has ended by then. `before` is called
    first. From any thread, and from a signal handler."""
    threading.Thread(target=_end_later, args=(seconds, reason, before), name="end-of-process", daemon=True).start()


def _end_later(seconds: float, reason: str, before: Callable[[], None]) -> None:
    time.sleep(seconds)
    try:
        before()
        last_line = threading.Thread(target=end_process, args=(reason,), daemon=True)
        last_line.start()
        last_line.join(_LAST_LINE_S)
    finally:
        os._exit(1)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While models are loaded, signals that have a handler and mean the end do end the process with status 0, even if
    the load hangs outside of Python, where no handler runs. Main thread only."""
    heard, said = socket.socketpair()
    said.setblocking(False)
    threading.Thread(target=_end_at_signals, args=(heard,), name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(said.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        said.close()


def _end_at_signals(heard: socket.socket) -> None:
    with heard:
        while number := heard.recv(1):
            if number[0] in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
                time.sleep(_HANDLERS_S)
                os._exit(0)
