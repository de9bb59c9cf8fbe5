"""Debian's Prometheus and a real server, as `make observe` starts them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Self

import pytest

from observe import ROOT
from observe.processes import require_prometheus
from observe.prometheus import Prometheus

# Far above what a busy machine needs.
_TIMEOUT_S = 240


@pytest.fixture(scope="session", autouse=True)
def _prometheus_is_installed() -> None:
    require_prometheus()


@pytest.fixture(scope="session")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Debian's promtool to its end."""

    def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["promtool", *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.fixture(scope="session")
def await_that() -> Callable[[Callable[[], bool]], bool]:
    """Poll a condition of other processes; return False if it does not hold within the timeout."""

    def wait(holds: Callable[[], bool]) -> bool:
        deadline = monotonic() + _TIMEOUT_S
        while monotonic() < deadline:
            if holds():
                return True
            sleep(0.2)
        return False

    return wait


class Observing:
    """`python -m observe` in a process group of its own, as in a shell."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "observe"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            # With the test's own stderr, a process that outlives the tests would keep their output open.
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.interrupt()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for a line that matches. The test's timeout is the deadline."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"it ended without a line that matches {pattern}:\n{''.join(self.output)}")

    def interrupt(self) -> int:
        """Send SIGINT to the whole group, as Ctrl-C does. Return the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.stdout is not None
        self.output += self.process.stdout.readlines()
        self.process.stdout.close()
        return self.process.wait(_TIMEOUT_S)


@pytest.fixture(scope="module")
def observing() -> Iterator[Observing]:
    """The processes of `make observe`."""
    with Observing() as started:
        yield started


@pytest.fixture(scope="module")
def observed_server(observing: Observing) -> str:
    """The address of a server with the default model under traffic of every kind."""
    return observing.wait_for(r"^gradless +(http:\S+)$")[1]


@pytest.fixture(scope="module")
def watched(observing: Observing, observed_server: str) -> Prometheus:
    """Prometheus that scrapes that server."""
    assert observed_server
    return Prometheus(observing.wait_for(r"^Prometheus +(http:\S+)$")[1])
