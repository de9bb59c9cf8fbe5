"""A service in which something fails once it is told to by SIGUSR1: `patched_serve.py WORKERS PATCH`, where PATCH is
Python that may use `fail(owner, name)`, which has a function raise from then on."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from typing import Any

from app.process.logs import configure_logging
from app.server.server import serve
from app.settings import load_settings
from app.workers import engine_process

told = threading.Event()


def fail(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def failing(*given: Any, **named: Any) -> Any:
        if told.is_set():
            raise RuntimeError("forced")
        return real(*given, **named)

    setattr(owner, name, failing)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: told.set())
    exec(sys.argv[2])  # noqa: S102 - of the test that starts this
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    if workers := int(sys.argv[1]):
        engine_process.serve_with_workers(settings, workers)
    else:
        serve(settings)
