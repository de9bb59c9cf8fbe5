"""Run reliability.flood in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from observe import ROOT
from reliability.pictures import draw_pictures
from reliability.serving import Served

_SPARE_S = 120.0


def flood(
    served: Served,
    *,
    clients: int,
    closed_s: float,
    factor: float = 0.0,
    open_s: float = 0.0,
    after_s: float = 0.0,
) -> dict[str, Any]:
    """Return the report of reliability.flood. Raises subprocess.CalledProcessError, subprocess.TimeoutExpired."""
    with tempfile.NamedTemporaryFile(suffix=".jpg") as image:
        Path(image.name).write_bytes(draw_pictures().clock)
        command = [sys.executable, "-m", "reliability.flood", served.address.host, str(served.address.port), image.name]
        command += ["--clients", str(clients), "--closed-seconds", str(closed_s), "--factor", str(factor)]
        command += ["--seconds", str(open_s), "--after-seconds", str(after_s)]
        done = subprocess.run(  # noqa: S603 - composed above
            command, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=closed_s + open_s + after_s + _SPARE_S
        )
    report: dict[str, Any] = json.loads(done.stdout)
    return report
