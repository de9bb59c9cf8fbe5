"""A service whose HTTP workers end before they serve, hang before they serve, or count as unresponsive after 3 s:
`faulty_workers.py failing|hanging|unresponsive`."""

from __future__ import annotations

import sys

from app.process.logs import configure_logging
from app.settings import load_settings
from app.workers import engine_process, fork_server, worker_pool

_END = "import app.workers.http_worker as worker; worker.run_worker = lambda *_: sys.exit(3); "
_HANG = "import time, app.main; app.main.freeze_loaded_objects = lambda: time.sleep(3600); "


if __name__ == "__main__":
    if sys.argv[1] == "failing":
        fork_server.PROGRAM = fork_server.PROGRAM.replace("from app", f"{_END}from app")
    elif sys.argv[1] == "hanging":
        fork_server.PROGRAM = fork_server.PROGRAM.replace("from app", f"{_HANG}from app")
        worker_pool._START_S = 3.0  # noqa: SLF001 - 60 s is long for a test
    else:
        worker_pool._UNRESPONSIVE_S = 3.0  # noqa: SLF001 - 20 s is long for a test
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    engine_process.serve_with_workers(settings, 2)
