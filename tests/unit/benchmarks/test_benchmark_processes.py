"""A measured server begins each load at rest."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain, count, repeat

from benchmarks.processes import RunningServer


def test_a_load_waits_until_the_server_uses_no_more_cpu_time() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        server = RunningServer(process, "http://127.0.0.1:1", 0.0)
        looks = count()
        # Busy at the first six looks, then at rest.
        cpu_seconds = chain(range(6), repeat(6.0))
        server.cpu_seconds = lambda: (next(looks), float(next(cpu_seconds)))[1]  # type: ignore[method-assign]
        server.wait_until_idle()
        assert next(looks) >= 7
        process.kill()
