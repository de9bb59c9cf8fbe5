"""The fork server: a process without threads that has imported what HTTP workers need, and forks them.

Why not multiprocessing's fork server: if that dies, all its forks seem to have ended, and starting a process blocks
until it has imported everything. This one may die at any time. A worker and the fork server hold the write end of a
pipe open, the worker's life pipe. The fork server writes the worker's process id to it, and the exit status once it has
reaped the worker. If the fork server has died, the pipe ends with the worker, and the status is unknown.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import cast

from app.settings import Settings

_log = logging.getLogger(__name__)

# Run by the fork server's interpreter, with the number of its socket as the argument.
PROGRAM = "import sys; sys.path[:] = {path!r}; from app.workers.fork_server import run; run(int(sys.argv[1]))"

_NUMBER = struct.Struct("<q")
_MAX_REQUEST_BYTES = 1 << 18
_SOCKET_BYTES = 1 << 20
_MAX_DESCRIPTORS = 16
_END_S = 1.0


class Fork:
    """A process that was requested. `life` is the read end of its life pipe."""

    def __init__(self, life: int) -> None:
        os.set_blocking(life, False)
        self.life = life
        self.pid: int | None = None
        # As in subprocess; None while the process runs, or if the fork server died before it.
        self.status: int | None = None
        self._received = b""
        self._ended = False
        # Signals for a process that does not run yet.
        self._pending: list[int] = []

    def read(self) -> bool:
        """Read what `life` says. Return False once the process has ended."""
        try:
            received = os.read(self.life, 2 * _NUMBER.size)
        except BlockingIOError:
            return True
        if not received:
            self._ended = True
            if self.pid is not None and self.status is None:
                # Orphans are this process's children if it is the first process of a container.
                with contextlib.suppress(ChildProcessError):
                    self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return False
        self._received += received
        self.pid, *status = (number for (number,) in _NUMBER.iter_unpack(self._received))
        if status:
            [self.status] = status
        while self._pending:
            self.send_signal(self._pending.pop(0))
        return True

    def send_signal(self, number: int) -> None:
        """Send a signal, once the process is running. From any thread."""
        if self.pid is None:
            self._pending.append(number)
        elif not self._ended and self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class ForkServer:
    """The fork server, as the engine process knows it. No method waits for it to fork."""

    def __init__(self) -> None:
        self._start()

    def fileno(self) -> int:
        """Return a file descriptor that is readable once the fork server has died."""
        return self._requests.fileno()

    def fork(self, settings: Settings, number: int, descriptors: Sequence[int]) -> Fork:
        """Run `run_worker(settings, number, descriptors)` in a fork. The descriptors stay the caller's. Raises OSError
        if the fork server has died, or there are no file descriptors."""
        life, life_write = os.pipe()
        try:
            socket.send_fds(self._requests, [pickle.dumps((settings, number))], [life_write, *descriptors])
        except BaseException:
            os.close(life)
            raise
        finally:
            os.close(life_write)
        return Fork(life)

    def restart(self) -> None:
        """Start another after this one has died. Its forks stay. Raises OSError."""
        self._requests.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        process = self._process
        _log.error("the fork server %d ended with status %s; starting another", process.pid, process.returncode)
        self._start()

    def kill(self) -> None:
        """From any thread."""
        self._process.kill()

    def _start(self) -> None:
        # Each request is one message, so it arrives whole with its descriptors.
        self._requests, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Requests wait in the socket while the fork server imports.
        self._requests.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        with server_end:
            self._process = subprocess.Popen(  # noqa: S603 - no part of the command comes from outside
                [sys.executable, "-c", PROGRAM.format(path=sys.path), str(server_end.fileno())],
                pass_fds=[server_end.fileno()],
                stdin=subprocess.DEVNULL,
            )


def run(descriptor: int) -> None:
    """Run the fork server until the other end of the socket `descriptor` is closed."""
    # A terminal sends SIGINT and SIGHUP to all processes; the engine process decides when they end. Forks inherit all
    # three, and have nothing to drain until they serve.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Imported once for all workers.
    import models.workers.worker_runtime  # noqa: F401, PLC0415
    from app.workers.http_worker import run_worker  # noqa: PLC0415

    try:
        _fork_for_requests(socket.socket(fileno=descriptor), run_worker)
    except Exception:  # noqa: BLE001 - the engine process starts another fork server
        traceback.print_exc()
    finally:
        # The interpreter would wait for the workers.
        os._exit(0)


def _fork_for_requests(requests: socket.socket, run_worker: Callable[[Settings, int, Sequence[int]], None]) -> None:
    """Fork a worker for each request, until the engine process has ended."""
    # Write ends of life pipes.
    lives: dict[BaseProcess, int] = {}

    def serve(request: bytes, descriptors: Sequence[int]) -> None:
        requests.close()
        # Its own life pipe stays open until this process ends.
        for other in lives.values():
            os.close(other)
        settings, number = pickle.loads(request)  # noqa: S301 - sent by the engine process
        run_worker(settings, number, descriptors)

    while True:
        ready = wait([requests, *(worker.sentinel for worker in lives)])
        for worker in [worker for worker in lives if worker.sentinel in ready]:
            worker.join()
            life = lives.pop(worker)
            _write(life, cast(int, worker.exitcode))
            os.close(life)
        if requests in ready:
            request, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, _MAX_DESCRIPTORS)
            if not request:
                return
            life, *own = descriptors
            worker = get_context("fork").Process(target=serve, args=(request, own))
            worker.start()
            lives[worker] = life
            _write(life, cast(int, worker.pid))
            for each in own:
                os.close(each)


def _write(life: int, number: int) -> None:
    # The engine process may have ended.
    with contextlib.suppress(BrokenPipeError):
        os.write(life, _NUMBER.pack(number))
