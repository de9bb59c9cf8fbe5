"""Tune the process for serving, and end it within a time limit, even if a thread hangs."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from app.process.logs import exit_at_once
from models.interface.errors import StartError

_log = logging.getLogger(__name__)

# Seconds until a thread that runs Python yields. Decode threads return to Python a few times per image; at Python's
# default of 5 ms each of them delays the event loop by that much.
_SWITCH_INTERVAL_S = 0.0001

# Allocations per collection, and collections per collection of the next generation. At Python's default (700, 10, 10)
# full collections pause an overloaded event loop for 0.1 to 0.3 s every 6 s.
_GC_THRESHOLDS = (5_000, 10, 100)

# File descriptors to ask for, one per connection; many systems start a process with a soft limit of 1024.
_FILE_LIMIT = 65536

# uvicorn's exit status for a failed start.
_START_FAILED = 3

# Seconds after the drain timeout until the process is ended by force: time for threads and HTTP workers to end.
FORCED_AFTER_DRAIN_S = 8.0

# Time to write the last log line; the log reader may have stalled.
_LAST_LINE_S = 1.0

# Time for Python signal handlers to end the process, if the main thread is free to run them.
_HANDLERS_S = 0.5


def tune_interpreter() -> None:
    """Reduce the delays that threads and the garbage collector cause on an event loop."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(*_GC_THRESHOLDS)


def freeze_loaded_objects() -> None:
    """Exclude everything loaded so far from later collections: 440,000 objects that live as long as the process. A
    full collection that includes them takes 0.24 s on two cores. `gc.unfreeze` undoes it."""
    gc.collect()
    gc.freeze()


def allow_many_connections() -> None:
    """Raise the soft limit of file descriptors, up to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some kernels refuse an infinite soft limit.
    target = _FILE_LIMIT if hard == resource.RLIM_INFINITY else min(hard, _FILE_LIMIT)
    if soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


def start_error(error: StartError | OSError) -> StartError:
    """Convert an error of the operating system to a StartError."""
    if isinstance(error, StartError):
        return error
    _log.debug("cannot start", exc_info=error)
    file = "" if error.filename is None else f"{error.filename}: "
    return StartError(f"{file}{error.strerror or error}")


def refuse_to_start(error: StartError | OSError) -> NoReturn:
    """Log the reason and end the process, even if other threads are running."""
    _log.error("cannot start: %s", start_error(error))
    exit_at_once(_START_FAILED)


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
def ended_by_signals(serves: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Context in which SIGTERM, SIGINT and SIGHUP end the process with status 0 if a handler is installed, until
    `serves`: from then on there may be requests, which the handler is to drain.

    This works even if a model load hangs in native code, where no Python signal handler runs. Main thread only.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    threading.Thread(target=_end_at_signals, args=(reader, serves), name="signals", daemon=True).start()
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        writer.close()


def _end_at_signals(reader: socket.socket, serves: Callable[[], bool]) -> None:
    with reader:
        while number := reader.recv(1):
            if number[0] in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
                time.sleep(_HANDLERS_S)
                if not serves():
                    os._exit(0)
