"""The process that HTTP workers are forks of. It has imported what they need, PyTorch among it, and has no threads.

Unlike multiprocessing's fork server this one may die at any time. A worker's end is seen by a pipe that the worker and
the fork server hold open: the fork server writes the process id to it, and the exit status once it has reaped the
worker. If the fork server has died, the pipe ends with the worker, and the status is unknown. Nothing here blocks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.context import set_spawning_popen
from typing import Any, ClassVar

_log = logging.getLogger(__name__)

# Run by the fork server's own interpreter, with the socket's descriptor as its argument.
PROGRAM = "import sys; sys.path[:] = {path!r}; from app.workers.fork_server import run; run(int(sys.argv[1]))"

_NUMBER = struct.Struct("<q")
_MOST_REQUEST_BYTES = 1 << 18
_SOCKET_BYTES = 1 << 20
_MOST_DESCRIPTORS = 16
_END_S = 1.0


class _Descriptors:
    """File descriptors on their way to a fork: those that are sent with a request, and those of objects in it, which
    multiprocessing.reduction.DupFd asks for while they are pickled."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self.all = list(descriptors)

    def duplicate_for_child(self, descriptor: int) -> int:
        self.all.append(descriptor)
        return len(self.all) - 1

    def DupFd(self, index: int) -> _Sent:  # noqa: N802 - as multiprocessing has it
        return _Sent(index)


class _Sent:
    """One of them, by its place."""

    # In the fork, where what was received is unpickled.
    received: ClassVar[Sequence[int]] = ()

    def __init__(self, index: int) -> None:
        self._index = index

    def detach(self) -> int:
        return self.received[self._index]


class Fork:
    """A process that has been asked for. `life` is readable when something has become known of it."""

    def __init__(self, life: int) -> None:
        os.set_blocking(life, False)
        self.life = life
        self.pid: int | None = None
        # As subprocess has it; None while the process lives, or if the fork server ended before it.
        self.status: int | None = None
        self._told = b""
        self._ended = False
        self._pending: list[int] = []

    def hear(self) -> bool:
        """Read what has become known. False once the process has ended."""
        try:
            told = os.read(self.life, 2 * _NUMBER.size)
        except BlockingIOError:
            return True
        if not told:
            self._ended = True
            if self.pid is not None and self.status is None:
                # An orphan whose parent this process has become, as the first process of a container does.
                with contextlib.suppress(ChildProcessError):
                    self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return False
        self._told += told
        numbers = [number for (number,) in _NUMBER.iter_unpack(self._told)]
        self.pid = numbers[0]
        if len(numbers) > 1:
            self.status = numbers[1]
        while self._pending:
            self.send_signal(self._pending.pop(0))
        return True

    def close(self) -> None:
        """Hear no more of it."""
        os.close(self.life)

    def send_signal(self, number: int) -> None:
        """Send it a signal, as soon as it is there. From any thread."""
        if self._ended or self.status is not None:
            return
        if self.pid is None:
            self._pending.append(number)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class ForkServer:
    """The fork server as the process that started it knows it. If it dies, it is started again."""

    def __init__(self) -> None:
        self._start()

    def fileno(self) -> int:
        """Readable once the fork server has died."""
        return self._asking.fileno()

    def fork(self, arguments: Sequence[Any], descriptors: Sequence[int]) -> Fork:
        """Have `run_worker(*arguments, descriptors)` run in a fork. The descriptors stay the caller's. Raises OSError
        if the fork server has died, or there are no file descriptors."""
        life, told = os.pipe()
        try:
            request, sent = _pickled(arguments, descriptors)
            socket.send_fds(self._asking, [request], [told, *sent])
        except BaseException:
            os.close(life)
            raise
        finally:
            os.close(told)
        return Fork(life)

    def start_again(self) -> None:
        """Put another in the place of one that has died. Raises OSError."""
        self.close()
        _log.error(
            "the fork server %d ended with status %s: another is started", self._process.pid, self._process.returncode
        )
        self._start()

    def close(self) -> None:
        """End the fork server. Its forks live on."""
        self._asking.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def kill(self) -> None:
        """From any thread."""
        self._process.kill()

    def _start(self) -> None:
        self._asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Requests wait in it for as long as the fork server imports.
        self._asking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        with asked:
            self._process = subprocess.Popen(  # noqa: S603 - composed here
                [sys.executable, "-c", PROGRAM.format(path=sys.path), str(asked.fileno())],
                pass_fds=[asked.fileno()],
                stdin=subprocess.DEVNULL,
            )


def _pickled(arguments: Sequence[Any], descriptors: Sequence[int]) -> tuple[bytes, list[int]]:
    """The arguments as bytes, and all descriptors that go with them, `descriptors` first."""
    sent = _Descriptors(descriptors)
    set_spawning_popen(sent)  # type: ignore[arg-type]  # it is one by its methods
    try:
        return pickle.dumps(arguments), sent.all
    finally:
        set_spawning_popen(None)


def run(descriptor: int) -> None:
    """Be the fork server, until the other end of the socket `descriptor` is closed."""
    # A terminal sends them to all its processes. The engine process tells when to end. A fork inherits all three, and
    # has nothing to drain until it serves.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Here, not above: this is what is imported once for all workers.
    import models.workers.worker_runtime  # noqa: F401, PLC0415
    from app.workers.http_worker import run_worker  # noqa: PLC0415

    with socket.socket(fileno=descriptor) as asked:
        request = _Server(asked).serve()
    if request is not None:
        _Sent.received = request[1]
        settings, options, number = pickle.loads(request[0])  # noqa: S301 - of our own
        run_worker(settings, options, number, request[1])


class _Server:
    def __init__(self, asked: socket.socket) -> None:
        self._asked = asked
        # By process id, where its end is to be told.
        self._lives: dict[int, int] = {}

    def serve(self) -> tuple[bytes, list[int]] | None:
        """Fork for each request. Returns it in the fork, and None once nobody can ask any more."""
        heard, woken = socket.socketpair()
        for end in (heard, woken):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        with heard, woken, selectors.DefaultSelector() as selector:
            selector.register(heard, selectors.EVENT_READ)
            selector.register(self._asked, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if heard in ready:
                    heard.recv(4096)
                    self._reap()
                if self._asked in ready:
                    request, descriptors, _, _ = socket.recv_fds(self._asked, _MOST_REQUEST_BYTES, _MOST_DESCRIPTORS)
                    if not request:
                        return None
                    if self._forked(descriptors):
                        return request, descriptors[1:]

    def _forked(self, descriptors: Sequence[int]) -> bool:
        """Whether this is the fork."""
        told = descriptors[0]
        pid = os.fork()
        if pid == 0:
            # The pipe `told` stays open until this process ends.
            for life in self._lives.values():
                os.close(life)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return True
        self._lives[pid] = told
        _tell(told, pid)
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        return False

    def _reap(self) -> None:
        while self._lives:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            told = self._lives.pop(pid)
            _tell(told, os.waitstatus_to_exitcode(status))
            os.close(told)


def _tell(told: int, number: int) -> None:
    # Nobody may want to know any more.
    with contextlib.suppress(BrokenPipeError):
        os.write(told, _NUMBER.pack(number))
