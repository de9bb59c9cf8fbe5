"""Twenty-four seconds of what `make soak` does for thirty minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_clients_of_every_kind_leave_nothing_behind_and_lose_no_request() -> None:
    command = [sys.executable, "-m", "reliability.soak", "--minutes", "0.4"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=280, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
