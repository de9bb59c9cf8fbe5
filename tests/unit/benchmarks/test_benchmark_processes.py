"""A measured server begins each load at rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.processes import RunningServer

# It works for as long as somebody waits, like a server on what its callers have left, says so, and rests.
_WORKS_THEN_RESTS = """
import pathlib, sys, time
while time.process_time() < 0.7:
    pass
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_a_load_waits_for_what_a_server_still_works_on(tmp_path: Path) -> None:
    rests = tmp_path / "rests"
    with subprocess.Popen([sys.executable, "-c", _WORKS_THEN_RESTS, str(rests)]) as process:
        try:
            server = RunningServer(process, "http://127.0.0.1:1", 0.0)
            while not server.cpu_seconds():
                assert process.poll() is None
            server.wait_until_idle()
            assert rests.exists()
        finally:
            process.kill()
