"""A service whose fronts end before they serve, or are soon held to hang: `faulty_fronts.py stillborn|hanging`."""

from __future__ import annotations

import sys

from app.fronts import fork_server, processes
from app.logs import configure_logging
from app.settings import load_settings

_END = "import app.fronts.front_process as front; front.run_front = lambda *_: sys.exit(3); "


if __name__ == "__main__":
    if sys.argv[1] == "stillborn":
        fork_server.PROGRAM = fork_server.PROGRAM.replace("from app", f"{_END}from app")
    else:
        processes._HANGS_S = 3.0  # noqa: SLF001 - 20 s are long for a test
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    processes.serve_by_fronts(settings, 2)
