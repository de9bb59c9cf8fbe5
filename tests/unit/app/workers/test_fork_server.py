"""The fork server ends when it fails, so that the engine process starts another."""

from __future__ import annotations

import os
import select
import signal

import pytest

from app.settings import Settings
from app.workers import fork_server
from app.workers.fork_server import ForkServer

# The first fork lives on. The next one fails, as it does at the limit of processes.
_FAILING = """
import os, signal, sys, types

sys.path[:] = {path!r}
sys.modules["models.workers.worker_runtime"] = types.ModuleType("worker_runtime")
workers = sys.modules["app.workers.http_worker"] = types.ModuleType("http_worker")
workers.run_worker = lambda *_: signal.pause()

from app.workers import fork_server

forks = iter([os.fork])
os.fork = lambda: next(forks)()
fork_server.run(int(sys.argv[1]))
"""


def test_a_fork_server_that_cannot_fork_ends_although_a_worker_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "PROGRAM", _FAILING)
    server = ForkServer()
    living, failing = (server.fork(Settings(), number, []) for number in range(2))

    assert select.select([server], [], [], 60)[0] == [server]
    assert living.read()
    assert living.pid is not None
    living.send_signal(signal.SIGKILL)
    assert select.select([failing.life], [], [], 60)[0]
    assert not failing.read()
    for fork in (living, failing):
        os.close(fork.life)
    assert server._process.wait(60) == 0  # noqa: SLF001 - only restart() waits for it
    server._requests.close()  # noqa: SLF001
