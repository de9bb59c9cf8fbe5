"""Short versions of two scenarios of `python -m reliability`, whose full ones take minutes: behind several processes
each request gets its own answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


def _run(scenario: str, seconds: int) -> None:
    command = [sys.executable, "-m", "reliability", "--only", scenario, "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=_ROOT, env=os.environ, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_reloads_beside_clients_that_disconnect_take_no_answer_from_anybody() -> None:
    _run("reloads", 24)


@pytest.mark.timeout(300)
def test_no_request_gets_the_answer_to_another_though_processes_are_killed_and_clients_disconnect() -> None:
    _run("own-answers", 6)
