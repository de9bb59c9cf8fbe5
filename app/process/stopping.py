"""End the process within a time limit, even if a thread hangs."""

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

# Seconds after the drain timeout until the process is ended by force: time for threads and HTTP workers to end.
FORCED_AFTER_DRAIN_S = 8.0

# Time to write the last log line; the log reader may have stalled.
_LAST_LINE_S = 1.0

# Time for Python signal handlers to end the process, if the main thread is free to run them.
_HANDLERS_S = 0.5


def end_process(failure: str | None) -> NoReturn:
    """End the process with status 0, or with status 1 and `failure` in the log.

    This does not use sys.exit, which joins every remaining thread: one may hang in a forward.
    """
    if failure is not None:
        _log.critical("ended: %s", failure)
    exit_at_once(0 if failure is None else 1)


def end_process_within(seconds: float, reason: str, before: Callable[[], None] = lambda: None) -> None:
    """End the process with status 1 after `seconds`, unless it has ended by then; log `reason` and call `before` first.

    May be called from any thread and from a signal handler.
    """
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
    """Context in which SIGTERM, SIGINT and SIGHUP end the process with status 0 if a handler is installed.

    This works even if a model load hangs in native code, where no Python signal handler runs. Main thread only.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    threading.Thread(target=_end_at_signals, args=(reader,), name="signals", daemon=True).start()
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()


def _end_at_signals(reader: socket.socket) -> None:
    with reader:
        while number := reader.recv(1):
            if number[0] in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
                time.sleep(_HANDLERS_S)
                os._exit(0)
