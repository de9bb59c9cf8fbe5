"""A fork server that is forked from the process of warm_command.py, instead of started: it imports PyTorch too.

The first one only. A later one, after the first has died, is started as always.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

from app.workers import fork_server

_POLL_S = 0.005


class _Child:
    """A child of this process, with the part of subprocess.Popen that app.workers.fork_server uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else monotonic() + timeout
        while self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif deadline is not None and monotonic() > deadline:
                raise subprocess.TimeoutExpired("the fork server", timeout or 0)
            else:
                sleep(_POLL_S)
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def prepare() -> None:
    """Fork a child that becomes the fork server once this process starts one. This process must have no threads."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _become_fork_server(theirs)
    theirs.close()

    def start(_command: Sequence[str], *, pass_fds: Sequence[int], **_: Any) -> _Child:
        fork_server.subprocess = subprocess
        with ours:
            socket.send_fds(ours, [b"."], pass_fds)
        return _Child(pid)

    fork_server.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=start, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )


def _become_fork_server(asked: socket.socket) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with asked:
        message, descriptors, _, _ = socket.recv_fds(asked, 1, 1)
    if message:
        fork_server.run(descriptors[0])
    os._exit(0)
