"""A service in which a function fails or waits after SIGUSR1: `patched_serve.py WORKERS PATCH`. PATCH is Python that
may use `engine_process`, `worker_pool`, `triggered`, `fail(owner, name)`, which has a function raise once triggered,
and `hold(owner, name)`, which has it print `holds` and wait for SIGUSR2."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from typing import Any

from app.process.logs import configure_logging
from app.server.server import serve
from app.settings import load_settings
from app.workers import engine_process, worker_pool  # noqa: F401 - for PATCH

triggered, released = threading.Event(), threading.Event()


def fail(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def failing(*arguments: Any, **named: Any) -> Any:
        if triggered.is_set():
            raise RuntimeError("forced")
        return real(*arguments, **named)

    setattr(owner, name, failing)


def hold(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def holding(*arguments: Any, **named: Any) -> Any:
        if triggered.is_set():
            print("holds", flush=True)  # noqa: T201 - for the test
            released.wait()
        return real(*arguments, **named)

    setattr(owner, name, holding)


def _trigger(*_: object) -> None:
    released.clear()
    triggered.set()


def _release(*_: object) -> None:
    triggered.clear()
    released.set()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _trigger)
    signal.signal(signal.SIGUSR2, _release)
    exec(sys.argv[2])  # noqa: S102 - the test that starts this wrote it
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    if workers := int(sys.argv[1]):
        engine_process.serve_with_workers(settings, workers)
    else:
        serve(settings)
