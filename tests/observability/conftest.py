"""Debian's Prometheus over a real server, as `make observe` starts them."""

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

from observe.places import ROOT
from observe.processes import require_prometheus
from observe.prometheus import Prometheus

# Far over what a busy machine takes.
_PATIENCE_S = 90


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
    """Whether something comes true before patience ends: of other processes, which give no sign by themselves."""

    def wait(holds: Callable[[], bool]) -> bool:
        deadline = monotonic() + _PATIENCE_S
        while monotonic() < deadline:
            if holds():
                return True
            sleep(0.2)
        return False

    return wait


class Observing:
    """One `python -m observe`, in a process group of its own, as a shell gives it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "observe"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            # Nobody waits for the end of these tests' own output because of it, should it outlive them.
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.interrupt()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The line that says so. What it takes to get there is bounded by the test's own timeout."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"it ended without saying {pattern}:\n{''.join(self.said)}")

    def interrupt(self) -> int:
        """Ctrl-C, which everybody in the group gets. The exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.stdout is not None
        self.said += self.process.stdout.readlines()
        self.process.stdout.close()
        return self.process.wait(_PATIENCE_S)


@pytest.fixture(scope="module")
def observing() -> Iterator[Observing]:
    """What `make observe` starts."""
    with Observing() as started:
        yield started


@pytest.fixture(scope="module")
def observed_server(observing: Observing) -> str:
    """The address of the default model under traffic of every kind."""
    return observing.wait_for(r"^gradless +(http:\S+)$")[1]


@pytest.fixture(scope="module")
def watched(observing: Observing, observed_server: str) -> Prometheus:
    """Prometheus over that server."""
    assert observed_server
    return Prometheus(observing.wait_for(r"^Prometheus +(http:\S+)$")[1])
